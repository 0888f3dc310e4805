# SPDX-License-Identifier: Apache-2.0
"""Verified copies of artifacts outside of the store: on a pod's volume, in the model cache, in an OCI image.

An image holds one whole model, which a serving pod mounts and reads in place. The model cache is a volume
with whole models that serving pods read in place. It has the layout of a store. A file is hashed once, after
it was copied. The volume then has a record of each file's size and times, which any write to the file
changes. A pod that finds other values hashes the files again.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_trainer.contract.references import ImageVolume, StoreConfig
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.disk_space import require_space
from finetune_trainer.manifest import MANIFEST_NAME, FileEntry, Manifest
from finetune_trainer.rooted_open import read_file
from finetune_trainer.runtime.progress import ProgressMeter
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import file_writing
from finetune_trainer.store.base import Store, StoredRef, key_of
from finetune_trainer.store.failures import (
    Mount,
    convert_write_errors,
    corruption_failure,
    verify_files,
    verify_names,
)
from finetune_trainer.store.mounted import MountedStore

Writing = Callable[[Path], AbstractContextManager[None]]
"""Context for writes to a path."""

logger = logging.getLogger(__name__)


def copy_artifact(
    store: Store, ref: StoredRef, target: Path, writing: Writing = convert_write_errors
) -> None:
    """Copy the artifact to `target` and verify each file on the way. Replaces an existing folder.

    `target` gets its name when the copy is complete. `writing` converts an OSError of its volume, also that
    the volume has too little free space, which is judged before anything is read.
    Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE, that of
    `writing`, which is INTERNAL for the pod's own volume; Preempted.
    """
    manifest = store.manifest(ref)
    temporary = target.with_name(f".{target.name}.part")
    meter = ProgressMeter(
        manifest.total_bytes,
        lambda done, total: f"{target.name}: {100 * done / total:.0f} % of {total} bytes",
    )
    # A container that was killed leaves a partial copy.
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(target):
        require_space(target, manifest.total_bytes, f"the copy of {store.uri(ref)}")
    try:
        for entry in manifest.files:
            with writing(temporary / entry.path):
                _copy_file(store, ref, entry, temporary / entry.path, meter)
        with writing(target):
            temporary.mkdir(parents=True, exist_ok=True)
            (temporary / MANIFEST_NAME).write_bytes(manifest.to_bytes())
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("verified %s: %d files, %d bytes", target, len(manifest.files), manifest.total_bytes)


def _copy_file(store: Store, ref: StoredRef, entry: FileEntry, target: Path, meter: ProgressMeter) -> None:
    content = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as copy:
        for chunk in store.chunks(ref, entry):
            content.update(chunk)
            copy.write(chunk)
            meter.add(len(chunk))
    if content.hexdigest() != entry.sha256:
        place = f"{store.uri(ref)}/{entry.path}"
        raise corruption_failure(place, f"its sha256 is {content.hexdigest()}, not {entry.sha256}")


REBUILD: Final = (
    "build the image again from the folder of the model in the store, and name its new digest in"
    " serving.modelCache.images of the ComputeProfile"
)


def verify_image(image: ImageVolume, manifest: Manifest) -> Path:
    """Return the folder of the model after each file was verified.

    Nothing can be recorded in an image, so each pod hashes the files when it starts. Raises StageFailure:
    ARTIFACT_NOT_FOUND if the image is mounted as an empty folder, ARTIFACT_CORRUPT naming the file.
    """
    folder = Path(image.path)
    mount = Mount(image.reference, folder)
    logger.info("verifying image %s: %d bytes", image.reference, manifest.total_bytes)
    try:
        if not any(folder.iterdir()):
            raise StageFailure(
                FailureReason.ARTIFACT_NOT_FOUND,
                f"image {image.reference} is mounted as an empty folder. Either its layers are not tar"
                " archives, as in artifacts that `oras push` makes, or the cluster has no image volumes"
                f" (Kubernetes 1.35 or newer has them): {REBUILD}, or remove its entry",
            )
        verify_names(folder, manifest, named=mount.named, advice=REBUILD)
        verify_files(folder, manifest, named=mount.named, advice=REBUILD)
    except OSError as error:
        place = mount.named(Path(os.fsdecode(error.filename)) if error.filename is not None else folder)
        raise StageFailure(
            FailureReason.ARTIFACT_CORRUPT,
            f"image {image.reference}: {place}: {error.strerror or error}; all users must be able to read the"
            f" files and folders of the image: {REBUILD}",
        ) from error
    return folder


VERIFIED: Final = "verified"
"""Folder with a record per verified model."""
REFILL: Final = (
    "delete the fill Jobs of the endpoint, with the label finetune.dev/stage=fill, and the operator fills the"
    " model cache again"
)


class FileTimes(BaseModel):
    """Size of a file in bytes, and its times in ns. A program can set `modified`, but not `changed`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "FileTimes":
        """Read those of a file. Raises OSError."""
        found = path.stat(follow_symlinks=False)
        return cls(bytes=found.st_size, modified=found.st_mtime_ns, changed=found.st_ctime_ns)


class VerifiedFiles(BaseModel):
    """Record of the files of a model when their hashes were right, by path."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, FileTimes]

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "VerifiedFiles":
        """Record the files of a folder, and its manifest. Raises OSError."""
        names = (MANIFEST_NAME, *(entry.path for entry in manifest.files))
        return cls(files={name: FileTimes.of(folder / name) for name in names})


class CacheVolume:
    """A model cache. Only `fill` writes to it."""

    def __init__(self, config: StoreConfig) -> None:
        self._root = Path(config.path)
        self._mount = Mount(config.uri, self._root)
        self._store = MountedStore(config.uri, self._root)

    @property
    def notes(self) -> Store:
        """Where processes that fill the cache leave notes for each other."""
        return self._store

    def find(self, ref: StoredRef) -> Path | None:
        """The folder of a model with every file verified; None if it is not complete, or was damaged.

        Records the verification if a process that filled the cache ended before it did.
        Raises StageFailure (STORE_UNAVAILABLE).
        """
        try:
            return self._verify(ref, records=True)
        except StageFailure as failure:
            if failure.reason is FailureReason.STORE_UNAVAILABLE:
                raise
            logger.info("%s", failure.message)
            return None

    def verified(self, ref: StoredRef) -> Path:
        """Return the folder of a model after each file was verified, now or since its last change.

        Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE.
        """
        return self._verify(ref, records=False)

    def _verify(self, ref: StoredRef, *, records: bool) -> Path:
        place = self._store.uri(ref)
        if not self._store.has(ref):
            raise StageFailure(
                FailureReason.ARTIFACT_NOT_FOUND,
                f"the model cache has no complete {place}: it was removed; {REFILL}",
            )
        manifest, folder = self._store.manifest(ref), self._root / key_of(ref)
        with self._mount.reachable(folder):
            verify_names(folder, manifest, named=self._mount.named, advice=REFILL)
            if self._is_unchanged(ref, folder, manifest):
                logger.info("%s is unchanged since it was verified", place)
                return folder
            logger.info("verifying %s: %d bytes", place, manifest.total_bytes)
            verified = VerifiedFiles.of(folder, manifest)
            verify_files(folder, manifest, self._root, named=self._mount.named, advice=REFILL)
            if records:
                self._write_record(ref, verified)
        return folder

    def fill(self, ref: StoredRef, store: Store) -> None:
        """Copy a model from the store, replacing a damaged copy, and verify the files that were written.

        Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE.
        """
        folder, record = self._root / key_of(ref), self._record(ref)
        with self._mount.reachable(record):
            record.unlink(missing_ok=True)
        copy_artifact(store, ref, folder, self._mount.reachable)
        manifest = self._store.manifest(ref)
        with self._mount.reachable(folder):
            file_writing.sync_tree(folder)
            verified = VerifiedFiles.of(folder, manifest)
            verify_files(folder, manifest, self._root, named=self._mount.named, advice=REFILL)
            self._write_record(ref, verified)

    def _write_record(self, ref: StoredRef, verified: VerifiedFiles) -> None:
        record = self._record(ref)
        record.parent.mkdir(parents=True, exist_ok=True)
        file_writing.write_file(record, verified.model_dump_json().encode())

    def _is_unchanged(self, ref: StoredRef, folder: Path, manifest: Manifest) -> bool:
        try:
            recorded = VerifiedFiles.model_validate_json(read_file(self._record(ref), self._root))
            return recorded == VerifiedFiles.of(folder, manifest)
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return False

    def _record(self, ref: StoredRef) -> Path:
        return self._root / VERIFIED / f"{key_of(ref).replace(os.sep, '-')}.json"
