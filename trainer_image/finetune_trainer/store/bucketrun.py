# SPDX-License-Identifier: Apache-2.0
"""Folder of a run in a bucket: written in the pod, uploaded in the background, read by the next pod."""

import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from pydantic import ValidationError
from typing_extensions import override

from finetune_trainer.manifest import MANIFEST_NAME, FileEntry, Manifest
from finetune_trainer.runtime.failure import Preempted, StageFailure
from finetune_trainer.store.bucketobjects import BucketObjects
from finetune_trainer.store.failures import any_file, writable
from finetune_trainer.store.runfolder import RunFolder

MAX_PENDING_UPLOADS: Final = 2
"""A stage that is faster than the network waits, so that it does not fill the disk."""

logger = logging.getLogger(__name__)


class BucketRunFolder(RunFolder):
    """Run folder whose uploads and removals run one at a time, in the order of the calls.

    A thread that saves a state in the background may call the methods while the main thread does.
    """

    def __init__(self, uri: str, path: Path, objects: BucketObjects) -> None:
        super().__init__(uri, path)
        self._objects = objects
        self._folders: dict[str, set[str]] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._pending: deque[Future[None]] = deque()
        self._failed = threading.Event()
        self._note_thread: threading.Thread | None = None
        with writable(path):
            path.mkdir(parents=True, exist_ok=True)

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(0)
        except StageFailure as failure:
            # Preempted promises that everything is saved.
            if error is None or isinstance(error, Preempted):
                raise
            logger.warning("some files were not stored: %s", failure.message)
        finally:
            self._worker.shutdown()

    @override
    @contextmanager
    def writable(self, name: str) -> Iterator[Path]:
        with writable(self.path / name):
            yield self.path / name

    @override
    def read(self, name: str) -> bytes | None:
        return self._objects.read(name)

    @override
    def write(self, name: str, content: bytes) -> None:
        self._objects.write(name, content)

    @override
    def note(self, name: str, content: bytes) -> None:
        if self._note_thread is not None and self._note_thread.is_alive():
            return
        self._note_thread = threading.Thread(
            target=self._note, args=(name, content), name="note", daemon=True
        )
        self._note_thread.start()

    @override
    def names(self, parent: str) -> set[str]:
        return set(self._subfolders(parent))

    @override
    def load(self, name: str, needed: Callable[[str], bool] = any_file) -> Path:
        folder = self.path / name
        if not folder.exists():
            self._download(name, folder, needed)
        return folder

    @override
    @contextmanager
    def part(self, name: str, session: str) -> Iterator[Path]:
        parent, _, folder = name.rpartition("/")
        path = self.path / parent / f".{folder}.{session}"
        with writable(path):
            path.mkdir(parents=True, exist_ok=True)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    @override
    def keep_part(self, name: str, part: Path, files: Iterable[FileEntry]) -> None:
        for entry in files:
            self._objects.put_file(part / entry.path, f"{name}/{entry.path}")

    @override
    def complete(self, name: str, part: Path, manifest: Manifest) -> None:
        self._add_folder(name)
        self._submit(partial(self._objects.write, f"{name}/{MANIFEST_NAME}", manifest.to_bytes()))
        self._wait(MAX_PENDING_UPLOADS - 1)

    def _add_folder(self, name: str) -> None:
        parent, _, folder = name.rpartition("/")
        self._subfolders(parent).add(folder)

    @override
    def keep(self, name: str) -> None:
        self._wait(MAX_PENDING_UPLOADS - 1)
        path = self.path / name
        if path.is_dir():
            self._add_folder(name)
            manifest = Manifest.model_validate_json((path / MANIFEST_NAME).read_bytes())
            self._submit(partial(self._objects.put_folder, path, name, manifest))
        else:
            self._submit(partial(self._objects.put_file, path, name))

    @override
    def remove(self, name: str) -> None:
        parent, _, folder = name.rpartition("/")
        self._subfolders(parent).discard(folder)
        path = self.path / name
        if path.is_file():
            path.unlink()

        def remove() -> None:
            shutil.rmtree(path, ignore_errors=True)  # its upload may have run until now
            self._objects.remove(name)

        self._submit(remove)

    def _subfolders(self, parent: str) -> set[str]:
        if parent not in self._folders:
            self._folders[parent] = self._objects.folders(parent)
        return self._folders[parent]

    def _download(self, name: str, folder: Path, needed: Callable[[str], bool]) -> None:
        content = self._objects.read(f"{name}/{MANIFEST_NAME}")
        with writable(folder):
            folder.mkdir(parents=True)
            if content is None:
                return
            (folder / MANIFEST_NAME).write_bytes(content)
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError:
            return  # verification of the folder reports it
        for entry in (each for each in manifest.files if needed(each.path)):
            key, path = f"{name}/{entry.path}", folder / entry.path
            size = self._objects.size(key)
            if size is None:
                continue
            with writable(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    file.writelines(self._objects.chunks(key, size))

    def _note(self, name: str, content: bytes) -> None:
        try:
            self._objects.write(name, content)
        except (StageFailure, Preempted) as failure:
            logger.warning("cannot write %s: %s", name, failure)

    def _submit(self, task: Callable[[], None]) -> None:
        self._pending.append(self._worker.submit(self._run, task))

    def _run(self, task: Callable[[], None]) -> None:
        if self._failed.is_set():  # a later task may remove a state whose successor was not stored
            return
        try:
            task()
        except BaseException:
            self._failed.set()
            raise

    def _wait(self, max_pending: int) -> None:
        """Wait until at most `max_pending` tasks are left. Raises the error of a task that failed."""
        while len(self._pending) > max_pending:
            with suppress(IndexError):  # another thread waits too
                self._pending.popleft().result()
