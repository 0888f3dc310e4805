# SPDX-License-Identifier: Apache-2.0
"""What an upload consists of, where it goes, and the URI under which pods read it.

Little goes into a ConfigMap, everything else into the store. Both are named after the content's digest, so
nothing is overwritten, and the same content is there once.
"""

import hashlib
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_client.backend import Object
from finetune_client.cluster import ClusterBackend
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.transfer.copying import Carrier, LocalFile, insist, send
from finetune_client.transfer.files import Files
from finetune_client.transfer.pod import PROGRAM, check_rights
from finetune_client.transfer.stored_files import OnBytes
from finetune_operator.api.labels import MANAGED_BY
from finetune_operator.manifests.volumes import NAME
from finetune_trainer.disk_space import size_text

MAX_CONFIGMAP_BYTES: Final = 900 * 1024
"""A ConfigMap holds 1 MiB, with its keys."""
CONFIGMAP_RIGHTS: Final = (("create", "configmaps", ""), ("get", "configmaps", ""))
MAX_NAME: Final = 100
MAX_OBJECT_NAME: Final = 40
DIGEST_LENGTH: Final = 10
"""Hexadecimal digits of a digest in the name of a ConfigMap."""
UPLOADS: Final = "uploads"
"""Folder of a store with uploaded files: `uploads/<64 hex>/<name>`."""
MODEL_FILE: Final = "config.json"
"""A folder with this file is a base model."""
UNSAFE: Final = re.compile(r"[^-._A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file or the files of a folder.

    Attributes:
        name: last part of the URI.
        files: the files; their names are paths below a folder.
        sha256: digest of the file; of a folder, that of the list which `sha256sum` makes of its files.
        left_out: names of entries that are not uploaded.
    """

    name: str
    files: tuple[LocalFile, ...]
    is_folder: bool
    sha256: str
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def is_model(self) -> bool:
        """Whether it is a base model."""
        return self.is_folder and any(file.name == MODEL_FILE for file in self.files)

    @property
    def fits_configmap(self) -> bool:
        """Whether a ConfigMap can hold it: a few rows, without subfolders."""
        keys = {_safe(file.name) for file in self.files}
        flat = all("/" not in file.name for file in self.files)
        return (
            self.size <= MAX_CONFIGMAP_BYTES and flat and len(keys) == len(self.files) and not self.is_model
        )


def _safe(name: str) -> str:
    """A name with characters that URIs and keys allow."""
    return UNSAFE.sub("-", name).strip("-.") or "file"


def object_name(file: str) -> str:
    """The name of a file without its suffixes, in the form of Kubernetes; empty if nothing is left."""
    name = re.sub(r"[^a-z0-9]+", "-", file.partition(".")[0].lower()).strip("-")
    return name[:MAX_OBJECT_NAME].strip("-")


def find_files(path: Path) -> tuple[dict[str, Path], list[str]]:
    """Files of an upload by their names, sorted, and the entries that are left out.

    Hidden entries and links to folders are left out. Links to files are followed, as in the cache of a hub.

    Raises:
        OperationError: nothing has this path, or a file has a name that not every system can store.
    """
    if not path.exists():
        raise OperationError(f"{path} does not exist", exit_code=ProgramExit.INVALID)
    if not path.is_dir():
        return {path.name: path}, []
    found: dict[str, Path] = {}
    left_out: list[str] = []
    for root, folders, names in os.walk(path):
        for name in sorted((*folders, *names)):
            entry = Path(root, name)
            relative = entry.relative_to(path).as_posix()
            if not relative.isprintable() or "\\" in relative:
                raise OperationError(
                    f"{relative!r} in {path} has a name with control characters or a backslash: rename it",
                    exit_code=ProgramExit.INVALID,
                )
            if name.startswith(".") or (name in folders and entry.is_symlink()):
                left_out.append(relative)
            elif name in names:
                found[relative] = entry
        folders[:] = [name for name in folders if not name.startswith(".")]
    if not found:
        raise OperationError(f"{path} has no files to upload", exit_code=ProgramExit.INVALID)
    return dict(sorted(found.items())), left_out


def total_size(path: Path) -> int:
    """Bytes that `read_upload` will read. Raises OperationError as it does."""
    found, _ = find_files(path)
    return sum(entry.stat().st_size for entry in found.values() if entry.exists())


def read_upload(path: Path, name: str | None = None, on_bytes: OnBytes = lambda _: None) -> Upload:
    """Take the digests of a file or a folder.

    Args:
        path: the file or folder.
        name: last part of the URI; None for the name of the file or folder.
        on_bytes: called with the number of bytes of each part that is read.

    Raises:
        OperationError: a file cannot be read or changes, or the name cannot be part of a URI.
    """
    if name is not None and (name != _safe(name) or len(name) > MAX_NAME):
        raise OperationError(
            f"--name {name!r} must have at most {MAX_NAME} letters, digits, dots, dashes or underscores",
            exit_code=ProgramExit.INVALID,
        )
    found, left_out = find_files(path)
    files = tuple(LocalFile.of(entry, relative, on_bytes) for relative, entry in found.items())
    is_folder = path.is_dir()
    listed = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    digest = hashlib.sha256(listed.encode()).hexdigest() if is_folder else files[0].sha256
    chosen = name or _safe(path.resolve().name)[-MAX_NAME:]
    return Upload(chosen, files, is_folder, digest, tuple(left_out))


def store_path(upload: Upload, folder: str = "") -> str:
    """Path of an upload in a store."""
    return "/".join(part for part in (folder, UPLOADS, upload.sha256, upload.name) if part)


def put_files(upload: Upload, files: Files, folder: str, owner: str, carrier: Carrier) -> bool:
    """Bring an upload to its path in a store. Returns whether it was missing.

    Args:
        upload: the files.
        files: the store.
        folder: folder of the store in `files`.
        owner: distinguishes the partial files of users.
        carrier: what is called while it works.

    Raises:
        OperationError: a file changes, the store is full or damaged, or the connection stays lost.
        StoredFilesError: the store refuses it.
    """
    target = store_path(upload, folder)
    partial = "/".join(
        part for part in (folder, UPLOADS, ".partial", f"{upload.sha256}-{owner}", upload.name) if part
    )
    name = upload.name
    if insist(name, carrier.patience, lambda: files.exists(target)):
        _check_copy(upload, files, target, carrier)
        return False
    free = insist(name, carrier.patience, files.free_bytes)
    if free is not None and free < upload.size:
        raise OperationError(
            f"the store has {size_text(free)} left, but {name} needs {size_text(upload.size)}: remove what is"
            " not needed (docs/storage.md, What you can remove by hand), or enlarge its volume"
        )
    for file in upload.files:
        send(file, files, _part_of(upload, partial, file), carrier)

    def publish() -> None:
        # The answer to an attempt that succeeded may have been lost.
        if not files.exists(target):
            files.publish(partial, target)

    insist(name, carrier.patience, publish)
    return True


def _part_of(upload: Upload, path: str, file: LocalFile) -> str:
    return f"{path}/{file.name}" if upload.is_folder else path


def _check_copy(upload: Upload, files: Files, target: str, carrier: Carrier) -> None:
    for file in upload.files:
        path = _part_of(upload, target, file)

        def digest(path: str = path) -> str | None:
            return None if files.size(path) is None else files.digest(path, carrier.checked)

        if insist(file.name, carrier.patience, digest) != file.sha256:
            raise OperationError(
                f"{path} of the store is damaged, and nothing is overwritten: remove {target} from the store,"
                " or upload with another --name"
            )


def build_configmap(upload: Upload, name: str | None) -> Object:
    """The ConfigMap of a small upload: a key per file. Its content never changes.

    Raises:
        OperationError: the name is not valid, or a file changes.
    """
    if name is not None and not NAME.match(name):
        raise OperationError(
            f"--name {name} is not a valid name of a ConfigMap: use lower-case letters, digits and dashes",
            exit_code=ProgramExit.INVALID,
        )
    stem = object_name(upload.name)
    name = name or f"{stem or 'rows'}-{upload.sha256[:DIGEST_LENGTH]}"
    contents = ((_safe(file.name), b"".join(file.chunks(0))) for file in upload.files)
    return configmap_of(name, contents) | {"immutable": True}


def configmap_of(name: str, contents: Iterable[tuple[str, bytes]]) -> Object:
    """A ConfigMap with these keys."""
    manifest: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {MANAGED_BY: PROGRAM}},
    }
    for key, content in contents:
        try:
            manifest.setdefault("data", {})[key] = content.decode()
        except UnicodeDecodeError:
            manifest.setdefault("binaryData", {})[key] = b64encode(content).decode()
    return manifest


def configmap_uri(upload: Upload, manifest: Object) -> str:
    """URI of the rows in a ConfigMap."""
    key = "*" if upload.is_folder else _safe(upload.files[0].name)
    return f"configmap://{manifest['metadata']['name']}/{key}"


def put_configmap(backend: ClusterBackend, manifest: Object) -> bool:
    """Create a ConfigMap. Returns whether it was missing.

    Raises:
        OperationError: it exists with another content, or is refused.
    """
    name = manifest["metadata"]["name"]
    check_rights(backend.access, backend.namespace, CONFIGMAP_RIGHTS, "an upload into a ConfigMap")
    existing = backend.get("ConfigMap", name)
    if existing is None:
        backend.create(manifest)
        return True
    if dict(_contents(existing)) != dict(_contents(manifest)):
        raise OperationError(
            f"ConfigMap {name} exists with another content, and nothing is overwritten: choose another"
            " --name, or leave it out",
            exit_code=ProgramExit.EXISTS,
        )
    return False


def _contents(configmap: Object) -> Iterator[tuple[str, bytes]]:
    yield from ((key, text.encode()) for key, text in (configmap.get("data") or {}).items())
    yield from ((key, b64decode(text)) for key, text in (configmap.get("binaryData") or {}).items())
