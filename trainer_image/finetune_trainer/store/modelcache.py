# SPDX-License-Identifier: Apache-2.0
"""The model cache: a volume with whole models that serving pods read in place.

It has the layout of a store. A file is hashed once, after it was copied. The volume then has a record of
each file's size and times, which any write to the file changes. A pod that finds other values hashes the
files again.
"""

import logging
import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_trainer.beneath import read_file
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import durable
from finetune_trainer.store.base import Store
from finetune_trainer.store.copying import copy_artifact
from finetune_trainer.store.failures import Mount, verify_files, verify_names
from finetune_trainer.store.keys import StoredRef, key_of
from finetune_trainer.store.mounted import MountedStore

VERIFIED: Final = "verified"
"""Folder with a record per verified model."""
REFILL: Final = (
    "delete the fill Jobs of the endpoint, with the label finetune.dev/stage=fill, and the operator fills the"
    " model cache again"
)

logger = logging.getLogger(__name__)


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
            durable.sync_tree(folder)
            verified = VerifiedFiles.of(folder, manifest)
            verify_files(folder, manifest, self._root, named=self._mount.named, advice=REFILL)
            self._write_record(ref, verified)

    def _write_record(self, ref: StoredRef, verified: VerifiedFiles) -> None:
        record = self._record(ref)
        record.parent.mkdir(parents=True, exist_ok=True)
        durable.write_file(record, verified.model_dump_json().encode())

    def _is_unchanged(self, ref: StoredRef, folder: Path, manifest: Manifest) -> bool:
        try:
            recorded = VerifiedFiles.model_validate_json(read_file(self._record(ref), self._root))
            return recorded == VerifiedFiles.of(folder, manifest)
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return False

    def _record(self, ref: StoredRef) -> Path:
        return self._root / VERIFIED / f"{key_of(ref).replace(os.sep, '-')}.json"
