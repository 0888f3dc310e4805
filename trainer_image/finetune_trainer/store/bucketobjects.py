# SPDX-License-Identifier: Apache-2.0
"""Objects below one prefix of a bucket, by relative keys. Failures say what to check."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.manifest import MANIFEST_NAME, Manifest, OnBytes, ignore_bytes
from finetune_trainer.remote.filesystem import open_filesystem
from finetune_trainer.remote.remote_folder import RemoteFolder
from finetune_trainer.remote.retries import ProblemKind, Retrier, Unreachable
from finetune_trainer.runtime.failure import Preempted, StageFailure

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
