# SPDX-License-Identifier: Apache-2.0
"""Download of remote files. A file gets its final name only when it is complete."""

import glob
import hashlib
import threading
import time
from pathlib import Path
from typing import IO

from finetune_trainer.beneath import no_follow_opener
from finetune_trainer.manifest import OnBytes, hash_file, ignore_bytes
from finetune_trainer.remote.remotefiles import open_stream, version_of
from finetune_trainer.remote.remotefolder import RemoteFile, RemoteFolder
from finetune_trainer.remote.remoteproblems import ProblemKind, RemoteProblem
from finetune_trainer.remote.retries import Retrier, Unreachable
from finetune_trainer.runtime.failure import Preempted


class _Unwritable(Exception):
    """An error of the disk, wrapped to distinguish it from errors of the network."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class Download:
    """Downloads files of one folder, up to a number of bytes and a deadline in `time.monotonic()`."""

    def __init__(
        self,
        folder: RemoteFolder,
        retrier: Retrier,
        stop: threading.Event,
        limit_bytes: int,
        deadline: float,
    ) -> None:
        self._folder = folder
        self._retrier = retrier
        self._stop = stop
        self._limit_bytes = limit_bytes
        self._deadline = deadline
        self._downloaded_bytes = 0
        """Total size of the complete files."""

    def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> None:
        """Download the file to `target`. Resumes an earlier attempt at the same version.

        Raises Unreachable, Preempted, and OSError of the disk.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        version = hashlib.sha256(file.version.encode()).hexdigest()[:16]
        part = target.with_name(f".{target.name}.{version}.part")
        whole = part.with_suffix(".whole")
        for stale in target.parent.glob(f".{glob.escape(target.name)}.{'?' * len(version)}.*"):
            if stale not in {part, whole} or not file.version:
                stale.unlink()
        if whole.exists() and target.exists():
            self._count(target, on_bytes)
            return
        whole.unlink(missing_ok=True)
        with open(part, "ab", opener=no_follow_opener) as content:
            on_bytes(content.tell())
            if file.size_bytes is None or content.tell() != file.size_bytes:
                try:
                    self._retrier.call(lambda: self._resume(file, content, on_bytes), content.tell)
                except _Unwritable as failure:
                    raise failure.error from None
        self._check(file, part)
        part.replace(target)
        whole.touch()
        self._count(target)

    def _count(self, target: Path, on_bytes: OnBytes = ignore_bytes) -> None:
        size = target.stat().st_size
        self._downloaded_bytes += size
        on_bytes(size)

    def _resume(self, file: RemoteFile, content: IO[bytes], on_bytes: OnBytes) -> None:
        stream = open_stream(self._folder, file, _resume_offset(file, content))
        if stream.version != file.version:
            raise _changed(file)
        content.truncate(stream.start)
        content.seek(stream.start)
        for chunk in stream.chunks:
            if self._stop.is_set():
                raise Preempted
            if time.monotonic() > self._deadline:
                raise Unreachable(RemoteProblem(ProblemKind.LIMIT, "the download takes too long"))
            if self._downloaded_bytes + content.tell() + len(chunk) > self._limit_bytes:
                raise Unreachable(RemoteProblem(ProblemKind.LIMIT, "it is larger than the limit"))
            try:
                content.write(chunk)
            except OSError as error:
                raise _Unwritable(error) from error
            on_bytes(len(chunk))
        if file.size_bytes is not None and content.tell() < file.size_bytes:
            raise EOFError(f"{file.name} ended after {content.tell()} of {file.size_bytes} bytes")

    def _check(self, file: RemoteFile, part: Path) -> None:
        """Raise Unreachable, and delete the download, if it is not the file that was listed."""
        size = part.stat().st_size
        if file.size_bytes is not None and size != file.size_bytes:
            mismatch = f"{file.name} has {size} bytes in the pod, and {file.size_bytes} on the server"
        elif file.sha256 is not None and hash_file(part) != file.sha256:
            mismatch = f"{file.name} does not have the sha256 that its server reports, {file.sha256}"
        elif self._retrier.call(lambda: version_of(self._folder, file)) != file.version:
            part.unlink()
            raise _changed(file)
        else:
            return
        part.unlink()
        raise Unreachable(RemoteProblem(ProblemKind.TRANSIENT, mismatch))


def _resume_offset(file: RemoteFile, content: IO[bytes]) -> int:
    """Return the offset to resume from: 0 without version or size, which a complete file is checked by."""
    return content.tell() if file.version and file.size_bytes is not None else 0


def _changed(file: RemoteFile) -> Unreachable:
    return Unreachable(RemoteProblem(ProblemKind.TRANSIENT, f"{file.name} was changed while it was read"))
