# SPDX-License-Identifier: Apache-2.0
"""The store of a namespace, and its files: on a claim, in a bucket, or in a folder of local runs."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from finetune_client.backend import Backend, parse
from finetune_client.cluster import ClusterBackend
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.transfer.copying import Carrier, Patience
from finetune_client.transfer.display import Display
from finetune_client.transfer.files import BucketFiles, Files
from finetune_client.transfer.pod import Report, claim_files, user_hash
from finetune_client.transfer.results import location_of
from finetune_client.transfer.stored_files import StoredFiles, StoredFilesError
from finetune_client.transfer.uploading import (
    Upload,
    build_configmap,
    configmap_uri,
    put_configmap,
    put_files,
    store_path,
)
from finetune_operator.api.compute_profile import ComputeProfile, is_marked_default
from finetune_operator.reconcile.passes import Blocked
from finetune_operator.reconcile.platform.profiles import resolve_store


@runtime_checkable
class LocalStores(Protocol):
    """A backend whose stores are folders of this machine."""

    def store_folder(self, uri: str) -> Path:
        """Folder of a store such as `pvc://artifacts`."""


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """Where uploads go: a store such as `pvc://artifacts`, a folder in it, and the Secret that opens it."""

    store: str
    folder: str
    secret: str | None = None


def default_profile(backend: ClusterBackend) -> ComputeProfile | None:
    """The default ComputeProfile of the cluster; None without one.

    Raises:
        OperationError: there are several, the user may not list them, or this program is older than it.
    """
    found = [
        each
        for each in backend.objects("ComputeProfile")
        if is_marked_default(each["metadata"].get("annotations") or {}, each["metadata"].get("labels") or {})
    ]
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(sorted(each["metadata"]["name"] for each in found))
        raise OperationError(
            f"more than one ComputeProfile is marked as the default ({names}), so the store is not known:"
            " name it with --to, and ask the platform team to leave the mark on one of them"
        )
    return parse(ComputeProfile, found[0])


def find_target(backend: ClusterBackend, uri: str | None) -> UploadTarget:
    """Where an upload goes: the given URI, or else the store of the default ComputeProfile.

    Raises:
        OperationError: neither exists, or the URI is not one of a store.
    """
    if uri is not None:
        return UploadTarget(*location_of(uri))
    store = resolve_store(None, default_profile(backend), backend.namespace)
    if isinstance(store, Blocked):
        raise OperationError(
            "where the upload goes is not known: name it with --to pvc://CLAIM or --to s3://BUCKET/FOLDER"
            f" ({store.message})",
            exit_code=ProgramExit.INVALID,
        )
    secret = store.credentials_secret_ref
    return UploadTarget(*location_of(store.uri), secret.name if secret is not None else None)


class Stores:
    """Opens the files of stores once each, and closes them at the end of its block."""

    def __init__(
        self, backend: Backend, report: Report, *, image: str | None = None, writes: bool = False
    ) -> None:
        self._backend = backend
        self._report = report
        self._image = image
        self._writes = writes
        self._opened: dict[str, Files] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Callable[[str], Files]:
        return self._files

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._stack.close()
        if isinstance(error, StoredFilesError):
            raise OperationError(str(error)) from error

    def _files(self, store: str) -> Files:
        if store not in self._opened:
            self._opened[store] = self._open(store)
        return self._opened[store]

    def _open(self, store: str) -> Files:
        scheme, _, name = store.partition("://")
        if isinstance(self._backend, LocalStores):
            return StoredFiles(str(self._backend.store_folder(store)))
        if scheme != "pvc":
            return BucketFiles(_bucket(scheme), name)
        if not isinstance(self._backend, ClusterBackend):
            raise OperationError(f"{store} is in a cluster: leave out --local")
        try:
            profile = default_profile(self._backend)
        except OperationError:
            # It only places the pod, and `--image` or a run names its image.
            profile = None
        return self._stack.enter_context(
            claim_files(
                self._backend,
                name,
                image=self._image,
                profile=profile,
                writes=self._writes,
                report=self._report,
            )
        )


PACKAGES: Final = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs"}
"""Packages of fsspec for the schemes of stores."""


def _bucket(scheme: str) -> object:
    """The file system of a scheme, with the credentials that its provider's programs find on this machine.

    Raises:
        OperationError: a package is missing.
    """
    try:
        import fsspec

        # They log what they also raise, with tracebacks.
        logging.getLogger(PACKAGES.get(scheme, "fsspec")).setLevel(logging.CRITICAL)
        return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        package = PACKAGES.get(scheme, "fsspec")
        raise OperationError(
            f"{scheme}:// needs the package {package} and your own credentials: install it, or copy with the"
            " provider's tool, such as `aws s3 cp --recursive`",
            [f"pip install {package}"],
            exit_code=ProgramExit.INVALID,
        ) from error


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Where an upload is.

    Attributes:
        uri: what a Dataset or a run names.
        is_new: whether it was not there before.
        secret: Secret with which pods reach it; None if they need none.
    """

    uri: str
    is_new: bool
    secret: str | None = None


def bring(
    backend: ClusterBackend,
    upload: Upload,
    display: Display,
    *,
    to: str | None = None,
    name: str | None = None,
    image: str | None = None,
) -> Uploaded:
    """Bring an upload into a ConfigMap or a store.

    Args:
        backend: the namespace.
        upload: the files.
        display: shows the progress.
        to: URI of a claim or bucket; None: what fits goes into a ConfigMap, more into the default store.
        name: name of the ConfigMap; None for one after its content.
        image: image of the pod that writes to a claim; None for that of runs.

    Raises:
        OperationError: a right, space or the store is missing, or a file changes.
    """
    if to is None and upload.fits_configmap:
        manifest = build_configmap(upload, name)
        is_new = put_configmap(backend, manifest)
        return Uploaded(configmap_uri(upload, manifest), is_new)
    target = find_target(backend, to)
    carrier = Carrier(
        arrived=display.phase(f"uploading {upload.name}", upload.size),
        checked=display.phase(f"checking {upload.name}", upload.size),
        patience=Patience(on_lost=lambda reason: display.say(f"connection lost ({reason}): trying again")),
    )
    with Stores(backend, display.say, image=image, writes=True) as open_files:
        is_new = put_files(upload, open_files(target.store), target.folder, user_hash(), carrier)
    return Uploaded(f"{target.store}/{store_path(upload, target.folder)}", is_new, target.secret)
