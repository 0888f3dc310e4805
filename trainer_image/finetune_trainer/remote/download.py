"""One remote file on its way to the disk: it has its name only when it is whole."""

import glob
import hashlib
import threading
import time
from pathlib import Path
from typing import IO

from finetune_trainer.beneath import unlinked
from finetune_trainer.manifest import OnBytes, hash_file, ignore_bytes
from finetune_trainer.remote.remotefiles import open_stream, version_of
from finetune_trainer.remote.remotefolder import RemoteFile, RemoteFolder
from finetune_trainer.remote.remoteproblems import ProblemKind, RemoteProblem
from finetune_trainer.remote.retries import Retrier, Unreachable
from finetune_trainer.runtime.failure import Preempted


class _Unwritable(Exception):
    """The disk's error, so that nobody takes it for the network's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class Download:
    """Brings files of one folder here, within a number of bytes and until a moment of `time.monotonic()`."""

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
        self._earlier_bytes = 0
        """Of the files that are here already."""

    def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> None:
        """Make `target` the file, with what an earlier attempt has left of the same version.

        Raises Unreachable, Preempted, OSError about the disk.
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
        with open(part, "ab", opener=unlinked) as content:
            on_bytes(content.tell())
            if file.size_bytes is None or content.tell() != file.size_bytes:
                try:
                    self._retrier.call(lambda: self._go_on(file, content, on_bytes), content.tell)
                except _Unwritable as failure:
                    raise failure.error from None
        self._check(file, part)
        part.replace(target)
        whole.touch()
        self._count(target)

    def _count(self, target: Path, on_bytes: OnBytes = ignore_bytes) -> None:
        size = target.stat().st_size
        self._earlier_bytes += size
        on_bytes(size)

    def _go_on(self, file: RemoteFile, content: IO[bytes], on_bytes: OnBytes) -> None:
        stream = open_stream(self._folder, file, _beginning(file, content))
        if stream.version != file.version:
            raise _changed(file)
        content.truncate(stream.start)
        content.seek(stream.start)
        for chunk in stream.chunks:
            if self._stop.is_set():
                raise Preempted
            if time.monotonic() > self._deadline:
                raise Unreachable(RemoteProblem(ProblemKind.LIMIT, "the download takes too long"))
            if self._earlier_bytes + content.tell() + len(chunk) > self._limit_bytes:
                raise Unreachable(RemoteProblem(ProblemKind.LIMIT, "there is more of it than was allowed"))
            try:
                content.write(chunk)
            except OSError as error:
                raise _Unwritable(error) from error
            on_bytes(len(chunk))
        if file.size_bytes is not None and content.tell() < file.size_bytes:
            raise EOFError(f"{file.name} ended after {content.tell()} of {file.size_bytes} bytes")

    def _check(self, file: RemoteFile, part: Path) -> None:
        """Raises Unreachable where it is not the file that was listed; then nothing of it is kept."""
        size = part.stat().st_size
        if file.size_bytes is not None and size != file.size_bytes:
            wrong = f"{file.name} has {size} bytes here, and {file.size_bytes} there"
        elif file.sha256 is not None and hash_file(part) != file.sha256:
            wrong = f"{file.name} does not have the sha256 that its server says, {file.sha256}"
        elif self._retrier.call(lambda: version_of(self._folder, file)) != file.version:
            part.unlink()
            raise _changed(file)
        else:
            return
        part.unlink()
        raise Unreachable(RemoteProblem(ProblemKind.PASSING, wrong))


def _beginning(file: RemoteFile, content: IO[bytes]) -> int:
    """Where to go on: nobody could tell whether all is here of a file without a version or a size."""
    return content.tell() if file.version and file.size_bytes is not None else 0


def _changed(file: RemoteFile) -> Unreachable:
    return Unreachable(RemoteProblem(ProblemKind.PASSING, f"{file.name} was changed while it was read"))
