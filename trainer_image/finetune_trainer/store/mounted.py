"""The store on a mounted file system: a folder gets its name only when it is complete."""

import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from typing_extensions import override

from finetune_trainer import durable
from finetune_trainer.contract import ArtifactRef, Digest
from finetune_trainer.failure import StageFailure
from finetune_trainer.manifest import CHUNK_BYTES, MANIFEST_NAME, FileEntry, Manifest, OnBytes, nothing
from finetune_trainer.store.base import (
    STAGING,
    STALE_STAGING_SECONDS,
    ArtifactKind,
    RunFolder,
    Store,
    key_of,
    run_key,
)
from finetune_trainer.store.failures import corrupt, reachable, unavailable, verify_files

logger = logging.getLogger(__name__)


class MountedStore(Store):
    """Artifacts and run folders below one mounted folder."""

    def __init__(self, uri: str, root: Path) -> None:
        super().__init__(uri)
        self._root = root

    @override
    def artifact(self, ref: ArtifactRef, *, verify: bool = False) -> Path:
        folder = self._folder(ref)
        manifest = self.manifest(ref)
        if verify:
            with reachable(folder):
                verify_files(folder, manifest)
        return folder

    @override
    def chunks(self, ref: ArtifactRef, entry: FileEntry) -> Iterator[bytes]:
        path = self._folder(ref) / entry.path
        with reachable(path):
            try:
                file = path.open("rb")
            except FileNotFoundError as error:
                raise corrupt(str(path), "it is missing") from error
            with file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk

    @override
    @contextmanager
    def staging(self) -> Iterator[Path]:
        parent = self._root / STAGING
        with reachable(parent):
            parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(parent)
            folder = parent / uuid.uuid4().hex
            folder.mkdir()
        try:
            yield folder
        except OSError as error:
            # A full disk is reported without a file name.
            if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(self._root):
                raise unavailable(error, folder) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @override
    def publish(self, kind: ArtifactKind, staging: Path, on_bytes: OnBytes = nothing) -> Digest:
        with reachable(self._root):
            manifest = Manifest.of(staging, on_bytes=on_bytes)
            durable.write_file(staging / MANIFEST_NAME, manifest.to_bytes())
            target = self._folder(ArtifactRef(kind=kind, digest=manifest.digest))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Another pod may publish the same content between the look and the rename.
            while not _is_file(target / MANIFEST_NAME):
                self._discard(target)
                try:
                    durable.move_folder(staging, target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
        return manifest.digest

    @override
    def delete(self, ref: ArtifactRef) -> None:
        folder = self._folder(ref)
        with reachable(folder), suppress(FileNotFoundError):
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
            durable.sync(folder)
            shutil.rmtree(folder)

    @override
    def delete_run(self, run: str) -> None:
        folder = self._root / run_key(run)
        with reachable(folder), suppress(FileNotFoundError):
            shutil.rmtree(folder)

    @override
    def run_folder(self, run: str, stage: str) -> "MountedRunFolder":
        key = run_key(run, stage)
        return MountedRunFolder(f"{self._uri}/{key}", self._root / key)

    @override
    def _read(self, key: str) -> bytes | None:
        return _read(self._root / key)

    @override
    def _write(self, key: str, content: bytes) -> None:
        path = self._root / key
        with reachable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.write_file(path, content)

    @override
    def _place(self, ref: ArtifactRef) -> str:
        return str(self._folder(ref))

    def _folder(self, ref: ArtifactRef) -> Path:
        return self._root / key_of(ref)

    def _discard(self, folder: Path) -> None:
        if not folder.exists():
            return
        logger.warning("%s has no manifest; it is an incomplete leftover and is replaced", folder)
        aside = self._root / STAGING / uuid.uuid4().hex
        folder.rename(aside)
        shutil.rmtree(aside)


class MountedRunFolder(RunFolder):
    """What is written is where it stays."""

    def __init__(self, uri: str, path: Path) -> None:
        super().__init__(uri, path)
        with reachable(path):
            path.mkdir(parents=True, exist_ok=True)

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @override
    @contextmanager
    def writable(self, name: str) -> Iterator[Path]:
        with reachable(self.path / name):
            yield self.path / name

    @override
    def read(self, name: str) -> bytes | None:
        return _read(self.path / name)

    @override
    def write(self, name: str, content: bytes) -> None:
        with reachable(self.path / name):
            durable.write_file(self.path / name, content)

    @override
    def note(self, name: str, content: bytes) -> None:
        try:
            self.write(name, content)
        except StageFailure as failure:
            logger.warning("%s", failure.message)

    @override
    def names(self, parent: str) -> set[str]:
        with reachable(self.path / parent), suppress(FileNotFoundError):
            return {entry.name for entry in (self.path / parent).iterdir() if entry.is_dir()}
        return set()

    @override
    def load(self, name: str) -> Path:
        return self.path / name

    @override
    def keep(self, name: str) -> None:
        pass

    @override
    def remove(self, name: str) -> None:
        path = self.path / name
        with reachable(path), suppress(FileNotFoundError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _read(path: Path) -> bytes | None:
    with reachable(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _is_file(path: Path) -> bool:
    # Path.is_file() would call a store that cannot be read an absent file.
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _remove_stale(parent: Path) -> None:
    oldest = time.time() - STALE_STAGING_SECONDS
    for folder in parent.iterdir():
        with suppress(FileNotFoundError):  # another pod is done with it
            if folder.stat().st_mtime < oldest:
                logger.info("removing %s, left behind by a pod that was killed", folder)
                shutil.rmtree(folder, ignore_errors=True)
