# SPDX-License-Identifier: Apache-2.0
"""The store in a bucket, through fsspec, with a scratch folder in the pod.

Objects cannot be renamed, so an artifact is uploaded to its final keys, and is valid once its manifest, the
last upload, exists. Stages read it from a verified copy in the scratch folder, made once per pod. The folder
of a run is written in the pod, uploaded in the background, and read by the next pod. Failures say what to
check.
"""

import logging
import math
import os
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from typing_extensions import override

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.references import ArtifactRef, StoreConfig
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.manifest import MANIFEST_NAME, FileEntry, Manifest, OnBytes, ignore_bytes
from finetune_trainer.remote.filesystem import open_filesystem
from finetune_trainer.remote.remote_folder import RemoteFolder
from finetune_trainer.remote.retries import ProblemKind, Retrier, Unreachable
from finetune_trainer.runtime.termination import Preempted, StageFailure
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
from finetune_trainer.store.copies import copy_artifact
from finetune_trainer.store.failures import (
    any_file,
    convert_write_errors,
    corruption_failure,
    pod_volume_full,
)
from finetune_trainer.store.pod_copies import PodCopies

ResultT = TypeVar("ResultT")

PART_BYTES: Final = 8 << 20
"""Size of one request. A small pod holds a few parts in memory at once."""
MAX_PARALLEL_PARTS: Final = 4
MAX_PARTS: Final = 10_000
"""Max parts of one upload to S3."""

ADVICE: Final = {
    ProblemKind.ABSENT: "check that the bucket exists; it is never created",
    ProblemKind.DENIED: "its credentials Secret must hold keys that may list, read, write and delete there",
    ProblemKind.UNTRUSTED: "add the certificate of its authority as key caBundle to its credentials Secret",
}
OTHER_ADVICE: Final = "check the endpoint in its credentials Secret, and that pods of this namespace reach it"


def open_bucket_objects(config: StoreConfig, stop: threading.Event) -> "BucketObjects":
    """Open the objects of a store. Raises StageFailure if the credentials are unusable."""
    return BucketObjects(open_filesystem(config.uri.rstrip("/"), config.credentials), stop)


class BucketObjects:
    """Reads and writes below one folder. Once `stop` is set, reads raise Preempted; writes are finished.

    All methods raise StageFailure (STORE_UNAVAILABLE) after their retries.
    """

    def __init__(self, folder: RemoteFolder, stop: threading.Event) -> None:
        self._folder = folder
        self._filesystem = folder.filesystem
        self._stop = stop
        self._reading = Retrier(folder, stop)
        self._writing = Retrier(folder, threading.Event())

    def below(self, key: str) -> "BucketObjects":
        """Return the objects of a folder."""
        folder = replace(self._folder, path=self._path(key), uri=f"{self._folder.uri}/{key}")
        return BucketObjects(folder, self._stop)

    def read(self, key: str) -> bytes | None:
        """Return the content of a small object, or None if it does not exist."""
        with suppress(FileNotFoundError):
            content: bytes = self._call(self._reading, key, self._filesystem.cat_file)
            return content
        return None

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""
        with suppress(FileNotFoundError):
            size: int = self._call(self._reading, key, self._filesystem.size)
            return size
        return None

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """Yield the first `size` bytes of an object. Reads a few parts ahead."""
        with ThreadPoolExecutor(MAX_PARALLEL_PARTS, thread_name_prefix="download") as pool:
            pending: deque[Future[bytes]] = deque()
            for start in range(0, size, PART_BYTES):
                read = partial(self._filesystem.cat_file, start=start, end=min(start + PART_BYTES, size))
                pending.append(pool.submit(self._require, self._reading, key, read))
                if len(pending) == MAX_PARALLEL_PARTS:
                    yield self._next(pending)
            while pending:
                yield self._next(pending)

    def write(self, key: str, content: bytes) -> None:
        """Write a small object atomically: readers see the old or the new content."""
        self._require(self._writing, key, lambda path: self._filesystem.pipe_file(path, content))

    def put_file(self, path: Path, key: str) -> None:
        """Upload a file."""
        settings = self._upload_settings(path.stat().st_size)
        self._require(
            self._writing, key, lambda target: self._filesystem.put_file(str(path), target, **settings)
        )

    def put_folder(
        self, folder: Path, key: str, manifest: Manifest, on_bytes: OnBytes = ignore_bytes
    ) -> None:
        """Upload the files of the manifest, then the manifest, which makes the folder valid.

        `on_bytes` gets the size of each uploaded file.
        """
        for entry in manifest.files:
            self.put_file(folder / entry.path, f"{key}/{entry.path}")
            on_bytes(entry.bytes)
        self.write(f"{key}/{MANIFEST_NAME}", manifest.to_bytes())

    def folders(self, key: str) -> set[str]:
        """Return the names of the subfolders of a folder."""
        names = (found.removeprefix(f"{key}/") for found in self.find(key))
        return {name.partition("/")[0] for name in names if "/" in name}

    def modified(self, key: str) -> dict[str, datetime]:
        """Return when each object in a folder was written, by the bucket's clock."""
        times: dict[str, datetime] = {}
        for found in self.find(key):
            with suppress(FileNotFoundError):
                times[found] = self._call(self._reading, found, self._filesystem.modified)
        return times

    def remove(self, key: str) -> None:
        """Remove an object, or a folder, its manifest first."""
        manifest = f"{key}/{MANIFEST_NAME}"
        for found in sorted(self.find(key), key=lambda name: name != manifest):
            with suppress(FileNotFoundError):
                self._call(self._writing, found, self._filesystem.rm_file)

    def find(self, key: str) -> list[str]:
        """Return the keys of all objects in a folder. The bucket must exist, the folder need not."""
        found: list[str] = self._require(self._reading, key, self._filesystem.find)
        return [path.removeprefix(f"{self._folder.path}/") for path in found]

    def _path(self, key: str) -> str:
        return f"{self._folder.path}/{key}"

    def _next(self, parts: deque[Future[bytes]]) -> bytes:
        if self._stop.is_set():
            raise Preempted
        return parts.popleft().result()

    def _call(self, retrier: Retrier, key: str, request: Callable[[str], ResultT]) -> ResultT:
        """Return the result of `request` for the path of `key`. Also raises FileNotFoundError."""
        try:
            return retrier.call(lambda: request(self._path(key)))
        except Unreachable as error:
            if error.problem.kind is ProblemKind.ABSENT:
                raise FileNotFoundError(error.problem.text) from error
            raise self._unavailable(key, error.problem.text, error.problem.kind) from error

    def _require(self, retrier: Retrier, key: str, request: Callable[[str], ResultT]) -> ResultT:
        """Like `_call`, for what must exist. If anything is missing, it is usually the bucket."""
        try:
            return self._call(retrier, key, request)
        except FileNotFoundError as error:
            raise self._unavailable(key, str(error), ProblemKind.ABSENT) from error

    def _unavailable(self, key: str, what: str, kind: ProblemKind) -> StageFailure:
        return StageFailure(
            FailureReason.STORE_UNAVAILABLE,
            f"store {self._folder.uri}/{key}: {what}; {ADVICE.get(kind, OTHER_ADVICE)}",
            ExitCode.STORE_UNAVAILABLE,
        )

    def _upload_settings(self, size: int) -> dict[str, Any]:
        """Return settings with small parts, so that uploads use little of the pod's memory."""
        part_bytes = max(PART_BYTES, math.ceil(size / MAX_PARTS))
        match self._folder.scheme:
            case "s3":
                return {"chunksize": part_bytes, "max_concurrency": MAX_PARALLEL_PARTS}
            case "gs":
                return {"chunksize": PART_BYTES}
            case _:
                return {"max_concurrency": MAX_PARALLEL_PARTS}


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
        with convert_write_errors(path):
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
        with convert_write_errors(self.path / name):
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
        with convert_write_errors(path):
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
        with convert_write_errors(folder):
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
            with convert_write_errors(path):
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


def open_bucket(config: StoreConfig, stop: threading.Event, process: int | None = None) -> "BucketStore":
    """Open the store in a bucket, with the credentials that the config names.

    `process` is the rank among several processes of the pod.

    Raises StageFailure: INVALID_CREDENTIALS, INVALID_CONFIG, STORE_UNAVAILABLE.
    """
    objects = open_bucket_objects(config, stop)
    objects.find(STAGING)  # fails early if the bucket does not exist or cannot be read
    copies = Path(config.path)
    return BucketStore(
        config.uri,
        objects,
        copies if not process else copies / f"local-rank-{process}",
        PodCopies(copies, stop),
    )


class BucketStore(Store):
    """Artifacts and run folders below one prefix of a bucket."""

    reads_in_place = False

    def __init__(self, uri: str, objects: BucketObjects, scratch: Path, copies: PodCopies) -> None:
        """`scratch` is this process's folder on the pod's own volume."""
        super().__init__(uri)
        self._objects = objects
        self._scratch = scratch
        self._copies = copies

    @override
    def artifact(self, ref: StoredRef, *, verify: bool = False) -> Path:
        return self._copies.get(key_of(ref), partial(copy_artifact, self, ref))

    @override
    def chunks(self, ref: StoredRef, entry: FileEntry) -> Iterator[bytes]:
        key = f"{key_of(ref)}/{entry.path}"
        size = self._objects.size(key)
        if size is None:
            raise corruption_failure(f"{self._uri}/{key}", "it is missing")
        if size != entry.bytes:
            raise corruption_failure(f"{self._uri}/{key}", f"it has {size} bytes, not {entry.bytes}")
        yield from self._objects.chunks(key, size)

    @override
    @contextmanager
    def staging(self) -> Iterator[Path]:
        folder = self._scratch / STAGING / uuid.uuid4().hex
        with convert_write_errors(folder):
            folder.mkdir(parents=True)
        try:
            yield folder
        except OSError as error:
            # The error of a full disk has no file name.
            if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(self._scratch):
                raise pod_volume_full(error, folder) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @override
    def publish(self, place: Place, staging: Path, on_bytes: OnBytes = ignore_bytes) -> Digest:
        with convert_write_errors(staging):
            manifest = Manifest.of(staging)
            (staging / MANIFEST_NAME).write_bytes(manifest.to_bytes())
        ref = ref_to(place, manifest.digest)
        if self.has(ref):
            on_bytes(manifest.total_bytes)
        else:
            self._remove_stale_uploads()
            with self._upload_noted(ref):
                self._objects.put_folder(staging, key_of(ref), manifest, on_bytes)
        self._copies.keep(key_of(ref), staging)
        return manifest.digest

    @override
    def delete(self, ref: ArtifactRef) -> None:
        self._objects.remove(key_of(ref))

    @override
    def delete_run(self, run: str) -> None:
        self._objects.remove(run_key(run))

    @override
    def run_folder(self, run: str, stage: str) -> BucketRunFolder:
        key = run_key(run, stage)
        return BucketRunFolder(f"{self._uri}/{key}", self._scratch / key, self._objects.below(key))

    @override
    def _read(self, key: str) -> bytes | None:
        return self._objects.read(key)

    @override
    def _write(self, key: str, content: bytes) -> None:
        self._objects.write(key, content)

    @override
    def _place(self, ref: StoredRef) -> str:
        return self.uri(ref)

    @contextmanager
    def _upload_noted(self, ref: StoredRef) -> Iterator[None]:
        """Keep a note in the bucket while the artifact has objects but no manifest."""
        note = f"{STAGING}/{uuid.uuid4().hex}"
        self._objects.write(note, key_of(ref).encode())
        yield
        self._objects.remove(note)

    def _remove_stale_uploads(self) -> None:
        """Remove unfinished uploads of killed pods, unless another pod has started the same upload."""
        stale, fresh = {}, set()
        oldest = datetime.now(UTC) - timedelta(seconds=STALE_STAGING_SECONDS)
        for note, modified in self._objects.modified(STAGING).items():
            content = self._objects.read(note)
            if content is None:  # another pod has finished this upload
                continue
            if modified < oldest:
                stale[note] = content.decode()
            else:
                fresh.add(content.decode())
        for note, key in stale.items():
            if key not in fresh and not self._objects.read(f"{key}/{MANIFEST_NAME}"):
                logger.info("removing the unfinished upload of %s/%s", self._uri, key)
                self._objects.remove(key)
            self._objects.remove(note)
