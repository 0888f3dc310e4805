"""A run's folder in a bucket: written in the pod, uploaded beside the stage, read back by the next pod."""

import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from pydantic import ValidationError
from typing_extensions import override

from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.runtime.failure import Preempted, StageFailure
from finetune_trainer.store.base import RunFolder
from finetune_trainer.store.bucketobjects import BucketObjects
from finetune_trainer.store.failures import writable

MAX_PENDING_UPLOADS: Final = 2
"""Kept names that may be on their way: a stage that is faster than the network waits, and fills no disk."""

logger = logging.getLogger(__name__)


class BucketRunFolder(RunFolder):
    """Uploads and removals happen one after the other, in the order in which they were asked for."""

    def __init__(self, uri: str, path: Path, objects: BucketObjects) -> None:
        super().__init__(uri, path)
        self._objects = objects
        self._folders: dict[str, set[str]] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._pending: deque[Future[None]] = deque()
        self._failed = threading.Event()
        self._noting: threading.Thread | None = None
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
            logger.warning("not everything was kept: %s", failure.message)
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
        if self._noting is not None and self._noting.is_alive():
            return
        self._noting = threading.Thread(target=self._note, args=(name, content), name="note", daemon=True)
        self._noting.start()

    @override
    def names(self, parent: str) -> set[str]:
        return set(self._known(parent))

    @override
    def load(self, name: str) -> Path:
        folder = self.path / name
        if not folder.exists():
            self._download(name, folder)
        return folder

    @override
    def keep(self, name: str) -> None:
        self._wait(MAX_PENDING_UPLOADS - 1)
        path = self.path / name
        if path.is_dir():
            parent, _, folder = name.rpartition("/")
            self._known(parent).add(folder)
            manifest = Manifest.model_validate_json((path / MANIFEST_NAME).read_bytes())
            self._later(partial(self._objects.put_folder, path, name, manifest))
        else:
            self._later(partial(self._objects.put_file, path, name))

    @override
    def remove(self, name: str) -> None:
        parent, _, folder = name.rpartition("/")
        self._known(parent).discard(folder)
        path = self.path / name
        if path.is_file():
            path.unlink()

        def remove() -> None:
            shutil.rmtree(path, ignore_errors=True)  # may have been on its way until now
            self._objects.remove(name)

        self._later(remove)

    def _known(self, parent: str) -> set[str]:
        if parent not in self._folders:
            self._folders[parent] = self._objects.folders(parent)
        return self._folders[parent]

    def _download(self, name: str, folder: Path) -> None:
        content = self._objects.read(f"{name}/{MANIFEST_NAME}")
        with writable(folder):
            folder.mkdir(parents=True)
            if content is None:
                return
            (folder / MANIFEST_NAME).write_bytes(content)
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError:
            return  # whoever verifies the folder says so
        for entry in manifest.files:
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
            logger.warning("%s is not written: %s", name, failure)

    def _later(self, task: Callable[[], None]) -> None:
        self._pending.append(self._worker.submit(self._run, task))

    def _run(self, task: Callable[[], None]) -> None:
        if self._failed.is_set():  # what follows may remove what did not get its successor
            return
        try:
            task()
        except BaseException:
            self._failed.set()
            raise

    def _wait(self, most: int) -> None:
        """Until at most so many tasks are left. Raises what went wrong in one that ended."""
        while len(self._pending) > most:
            self._pending.popleft().result()
