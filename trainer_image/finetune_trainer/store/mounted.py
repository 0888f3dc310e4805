# SPDX-License-Identifier: Apache-2.0
"""The store on a mounted file system: a folder gets its name only when it is complete.

`read_ahead` reads an artifact into the page cache while the process still imports its libraries.
"""

import errno
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from typing_extensions import override

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.environment import STORE_MOUNT
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.manifest import CHUNK_BYTES, MANIFEST_NAME, FileEntry, Manifest, OnBytes, ignore_bytes
from finetune_trainer.pod_limits import pod_memory_bytes
from finetune_trainer.rooted_open import open_file, read_file, require_beneath, root_of
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.store import file_writing
from finetune_trainer.store.base import (
    STAGING,
    STALE_STAGING_SECONDS,
    Place,
    RunFolder,
    Store,
    StoredRef,
    key_of,
    ref_to,
    run_key,
)
from finetune_trainer.store.failures import Mount, any_file, open_entry, verify_files

logger = logging.getLogger(__name__)


class MountedStore(Store):
    """Artifacts and run folders below one mounted folder; links that lead out of its volume are refused."""

    reads_in_place = True

    def __init__(self, uri: str, root: Path) -> None:
        super().__init__(uri)
        self._root = root
        self._mount = Mount(uri, root)
        self._volume = root_of(root, STORE_MOUNT)

    @override
    def artifact(self, ref: StoredRef, *, verify: bool = False) -> Path:
        folder = self._folder(ref)
        manifest = self.manifest(ref)
        with self._mount.reachable(folder):
            verify_files(folder, manifest, self._volume, hashes=verify, named=self._mount.named)
        return folder

    @override
    def chunks(self, ref: StoredRef, entry: FileEntry) -> Iterator[bytes]:
        path = self._folder(ref) / entry.path
        with self._mount.reachable(path), open_entry(path, self._volume, self._mount.named) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    @override
    @contextmanager
    def staging(self) -> Iterator[Path]:
        parent = self._at(STAGING)
        with self._mount.reachable(parent):
            parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(parent)
            folder = parent / uuid.uuid4().hex
            folder.mkdir()
        try:
            yield folder
        except OSError as error:
            # The error of a full disk has no file name.
            if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(self._root):
                raise self._mount.unavailable(error, folder) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @override
    def publish(self, place: Place, staging: Path, on_bytes: OnBytes = ignore_bytes) -> Digest:
        with self._mount.reachable(self._root):
            manifest = Manifest.of(staging, on_bytes=on_bytes)
            file_writing.write_file(staging / MANIFEST_NAME, manifest.to_bytes())
            target = self._folder(ref_to(place, manifest.digest))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Another pod may publish the same content between the check and the rename.
            while _read(target / MANIFEST_NAME, self._volume, self._mount) is None:
                self._discard(target)
                try:
                    file_writing.move_folder(staging, target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
        return manifest.digest

    @override
    def delete(self, ref: ArtifactRef) -> None:
        folder = self._folder(ref)
        with self._mount.reachable(folder), suppress(FileNotFoundError):
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
            file_writing.sync(folder)
            shutil.rmtree(folder)

    @override
    def delete_run(self, run: str) -> None:
        folder = self._at(run_key(run))
        with self._mount.reachable(folder), suppress(FileNotFoundError):
            shutil.rmtree(folder)

    @override
    def run_folder(self, run: str, stage: str) -> "MountedRunFolder":
        key = run_key(run, stage)
        return MountedRunFolder(f"{self._uri}/{key}", self._at(key), self._volume)

    @override
    def _read(self, key: str) -> bytes | None:
        return _read(self._at(key), self._volume, self._mount)

    @override
    def _write(self, key: str, content: bytes) -> None:
        path = self._at(key)
        with self._mount.reachable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file_writing.write_file(path, content)

    @override
    def _place(self, ref: StoredRef) -> str:
        return self.uri(ref)

    def _folder(self, ref: StoredRef) -> Path:
        return self._at(key_of(ref))

    def _at(self, key: str) -> Path:
        """Return the path of `key`. Raises StageFailure (STORE_UNAVAILABLE) if a link leads out."""
        path = self._root / key
        with self._mount.reachable(path):
            require_beneath(path, self._volume)
        return path

    def _discard(self, folder: Path) -> None:
        if not folder.exists():
            return
        logger.warning("replacing %s: it has no manifest, so it is incomplete", folder)
        aside = self._root / STAGING / uuid.uuid4().hex
        folder.rename(aside)
        shutil.rmtree(aside)


class MountedRunFolder(RunFolder):
    """Run folder on a volume. Files are written to their final place."""

    def __init__(self, uri: str, path: Path, volume: Path) -> None:
        super().__init__(uri, path)
        self._volume = volume
        with self.mount.reachable(path):
            path.mkdir(parents=True, exist_ok=True)

    @property
    @override
    def mount(self) -> Mount:
        return Mount(self.uri, self.path)

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @override
    @contextmanager
    def writable(self, name: str) -> Iterator[Path]:
        path = self._at(name)
        with self.mount.reachable(path):
            yield path

    @override
    def read(self, name: str) -> bytes | None:
        return _read(self._at(name), self._volume, self.mount)

    @override
    def write(self, name: str, content: bytes) -> None:
        self._at(name)
        with self.mount.reachable(self.path / name):
            file_writing.write_file(self.path / name, content)

    @override
    def note(self, name: str, content: bytes) -> None:
        try:
            self.write(name, content)
        except StageFailure as failure:
            logger.warning("%s", failure.message)

    @override
    def names(self, parent: str) -> set[str]:
        folder = self._at(parent)
        with self.mount.reachable(folder), suppress(FileNotFoundError):
            return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()}
        return set()

    @override
    def load(self, name: str, needed: Callable[[str], bool] = any_file) -> Path:
        return self._at(name)

    @override
    def keep(self, name: str) -> None:
        pass

    @override
    @contextmanager
    def part(self, name: str, session: str) -> Iterator[Path]:
        parent, _, folder = name.rpartition("/")
        path = self._at(f"{parent}/.{folder}.{session}")
        with self.mount.reachable(path):
            path.mkdir(parents=True, exist_ok=True)
            yield path

    @override
    def keep_part(self, name: str, part: Path, files: Iterable[FileEntry]) -> None:
        with self.mount.reachable(part):
            file_writing.sync(part)

    @override
    def complete(self, name: str, part: Path, manifest: Manifest) -> None:
        with self.mount.reachable(part):
            file_writing.write_file(part / MANIFEST_NAME, manifest.to_bytes())
            file_writing.replace_folder(part, self._at(name))

    @override
    def remove(self, name: str) -> None:
        self._at(str(Path(name).parent))
        path = self.path / name
        with self.mount.reachable(path), suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _at(self, name: str) -> Path:
        """Return the path of `name`. Raises StageFailure (STORE_UNAVAILABLE) if a link leads out."""
        path = self.path / name
        with self.mount.reachable(path):
            require_beneath(path, self._volume)
        return path


def _read(path: Path, volume: Path, mount: Mount) -> bytes | None:
    with mount.reachable(path):
        try:
            return read_file(path, volume)
        except FileNotFoundError:
            return None


def _remove_stale(parent: Path) -> None:
    oldest = time.time() - STALE_STAGING_SECONDS
    for folder in parent.iterdir():
        with suppress(FileNotFoundError):  # another pod has removed it
            if folder.stat().st_mtime < oldest:
                logger.info("removing %s, left by a pod that was killed", folder)
                shutil.rmtree(folder, ignore_errors=True)


BUFFER_BYTES: Final = 16 << 20
"""Large reads, because after each one the thread waits for the interpreter, which is busy with imports."""
MAX_MEMORY_SHARE: Final = 0.5
"""Max size of the files relative to the pod's memory: larger files would push each other out of it."""


def read_ahead(store: Store, ref: ArtifactRef) -> threading.Thread:
    """Start to read the files of an artifact in the background, and return the thread.

    Without effect where the store does not read artifacts in place, or where memory is too small for them.
    Errors are left to the code that needs the files.
    """
    thread = threading.Thread(target=_read_files, args=(store, ref), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _read_files(store: Store, ref: ArtifactRef) -> None:
    if not store.reads_in_place:
        return
    try:
        files = store.manifest(ref).files
        if sum(entry.bytes for entry in files) > MAX_MEMORY_SHARE * pod_memory_bytes():
            return
        folder = store.artifact(ref)
        buffer = bytearray(BUFFER_BYTES)
        for entry in files:
            with os.fdopen(open_file(folder / entry.path, folder), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    except (OSError, StageFailure, Preempted) as error:
        logger.debug("reading ahead has ended: %s", error)
