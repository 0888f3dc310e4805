# SPDX-License-Identifier: Apache-2.0
"""A file or folder that a stage reads over the network: its listing and its download.

Files are read from any offset, so that a broken download can continue. A file gets its final name only when
it is complete.
"""

import glob
import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from finetune_trainer import canonical_json
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.disk_space import require_space
from finetune_trainer.manifest import OnBytes, digest_of, hash_file, ignore_bytes
from finetune_trainer.remote.credentials import valid_keys
from finetune_trainer.remote.filesystem import open_filesystem
from finetune_trainer.remote.remote_folder import (
    CHUNK_BYTES,
    MAX_DOWNLOAD_SECONDS,
    MAX_FILES,
    REQUESTS_AHEAD,
    RemoteFile,
    RemoteFolder,
    Stream,
)
from finetune_trainer.remote.retries import ProblemKind, RemoteProblem, Retrier, Unreachable
from finetune_trainer.rooted_open import no_follow_opener
from finetune_trainer.runtime.logs import SCRUBBER
from finetune_trainer.runtime.termination import Preempted, StageFailure

VERSION_KEYS: Final = ("ETag", "etag", "generation", "blob_id")
"""Keys under which file systems report the version of a file."""
TIME_KEYS: Final = ("LastModified", "last_modified", "updated")
"""Keys under which file systems report when a file was last written."""


def list_files(folder: RemoteFolder) -> tuple[RemoteFile, ...]:
    """List the files in a folder, without its subfolders, sorted by name; or the file itself.

    Raises Unreachable if there are too many.
    """
    if folder.scheme == "https":
        from finetune_trainer.remote import web

        return (web.stat(folder),)
    info = folder.filesystem.info(folder.path)
    entries = [info] if info["type"] == "file" else folder.filesystem.ls(folder.path, detail=True)
    # Object stores represent folders as empty objects.
    files = [_file(entry) for entry in entries if entry["type"] == "file" and not entry["name"].endswith("/")]
    if len(files) > MAX_FILES:
        raise Unreachable(RemoteProblem(ProblemKind.LIMIT, f"it has {len(files)} files"))
    return tuple(sorted(files, key=lambda file: file.name))


def version_of(folder: RemoteFolder, file: RemoteFile) -> str:
    """Return the current version of a file."""
    if folder.scheme == "https":
        from finetune_trainer.remote import web

        return web.stat(folder).version
    return _file(folder.filesystem.info(file.path)).version


def open_stream(folder: RemoteFolder, file: RemoteFile, offset: int) -> Stream:
    """Open the content of a file at `offset`, or at its beginning."""
    if folder.scheme == "https":
        from finetune_trainer.remote import web

        return web.open_stream(folder, file, offset)
    return Stream(offset, version_of(folder, file), _chunks(folder, file, offset))


def _chunks(folder: RemoteFolder, file: RemoteFile, offset: int) -> Iterator[bytes]:
    """Read a few requests ahead, because a single connection is slow on a fast network."""
    size = file.size_bytes or 0
    pool = ThreadPoolExecutor(REQUESTS_AHEAD, thread_name_prefix="download")
    pending: deque[Future[bytes]] = deque()
    try:
        for start in range(offset, size, CHUNK_BYTES):
            pending.append(pool.submit(_range, folder, file, start, min(start + CHUNK_BYTES, size)))
            if len(pending) == REQUESTS_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _range(folder: RemoteFolder, file: RemoteFile, start: int, end: int) -> bytes:
    with folder.filesystem.open(file.path, "rb", block_size=CHUNK_BYTES, cache_type="none") as content:
        content.seek(start)
        read: bytes = content.read(end - start)
        return read


def _file(entry: dict[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs") or {}
    return RemoteFile(
        name=PurePosixPath(entry["name"]).name,
        path=entry["name"],
        size_bytes=entry["size"],
        version=_first(entry, VERSION_KEYS),
        modified=_first(entry, TIME_KEYS),
        sha256=lfs.get("sha256"),
    )


def _first(entry: dict[str, Any], keys: tuple[str, ...]) -> str:
    return next((str(entry[key]) for key in keys if entry.get(key)), "")


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
        part, whole = _remove_stale(file, target)
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


def _remove_stale(file: RemoteFile, target: Path) -> tuple[Path, Path]:
    """Remove what earlier attempts at other versions of the file left.

    Returns the paths of the incomplete download, and of the mark that `target` is complete.
    """
    version = hashlib.sha256(file.version.encode()).hexdigest()[:16]
    part = target.with_name(f".{target.name}.{version}.part")
    whole = part.with_suffix(".whole")
    for stale in target.parent.glob(f".{glob.escape(target.name)}.{'?' * len(version)}.*"):
        if stale not in {part, whole} or not file.version:
            stale.unlink()
    return part, whole


def missing_bytes(file: RemoteFile, target: Path) -> int:
    """Return the bytes that a download to `target` will write; 0 if the size is unknown. Raises OSError."""
    part, whole = _remove_stale(file, target)
    if file.size_bytes is None or (whole.exists() and target.exists()):
        return 0
    return max(0, file.size_bytes - (part.stat().st_size if part.exists() else 0))


def _resume_offset(file: RemoteFile, content: IO[bytes]) -> int:
    """Return the offset to resume from: 0 without version or size, which a complete file is checked by."""
    return content.tell() if file.version and file.size_bytes is not None else 0


def _changed(file: RemoteFile) -> Unreachable:
    return Unreachable(RemoteProblem(ProblemKind.TRANSIENT, f"{file.name} was changed while it was read"))


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """A source or base model as the spec names it."""

    uri: str
    field: str
    """Field of the spec with `uri` and `credentialsSecretRef`, such as `sources[0]`."""
    credentials: SecretMount | None
    absent: FailureReason
    """Failure reason if nothing exists at the uri."""
    limit_bytes: int
    revision: str | None = None
    """Branch, tag or commit at the hub."""

    @property
    def place(self) -> str:
        """The uri for messages: without its query, which may contain a signature, which is a credential."""
        return self.uri.partition("?")[0]


class RemoteSource:
    """The content of a uri at the time of opening.

    Every error is a StageFailure that names the uri: ACCESS_DENIED, ADDRESS_REFUSED, INVALID_CREDENTIALS,
    SOURCE_TOO_LARGE, SOURCE_UNAVAILABLE, or the reason `absent` of the request. All methods may raise
    Preempted.
    """

    def __init__(self, request: SourceRequest, stop: threading.Event) -> None:
        self._request = request
        self._stop = stop
        self._deadline = time.monotonic() + MAX_DOWNLOAD_SECONDS
        SCRUBBER.add_uri(request.uri)
        folder = open_filesystem(request.uri, request.credentials)
        self._retrier = Retrier(folder, stop)
        self.revision: str | None = None
        """The commit at the hub; None elsewhere."""
        with self._errors_explained():
            if folder.scheme == "hf":
                from finetune_trainer.remote import hub

                folder, self.revision = self._retrier.call(lambda: hub.pin_revision(folder, request.revision))
            self._folder = folder
            self.files = self._retrier.call(lambda: list_files(folder))
        self.is_file = [file.path for file in self.files] == [folder.path]
        """Whether the uri names a file, not a folder."""

    @property
    def key(self) -> str | None:
        """Hash of server, uri and content: equal keys mean equal files. None without versions."""
        if self.revision is None and not all(file.version for file in self.files):
            return None
        listed = [[file.name, file.size_bytes, file.version] for file in self.files]
        content = canonical_json.encode([self._folder.endpoint, self._request.uri, self.revision or listed])
        return digest_of(content).removeprefix("sha256:")

    def version(self, files: Iterable[RemoteFile]) -> str | None:
        """Return a hash of some files by their versions or times; None if the server reports neither.

        Less strict than `key`: times replace missing versions.
        """
        listed = [[file.name, file.size_bytes, file.version or file.modified] for file in files]
        content = listed if all(version for _, _, version in listed) else self.revision
        if content is None:
            return None
        return digest_of(canonical_json.encode([self._folder.endpoint, self._request.uri, content]))

    def download(self, files: Iterable[RemoteFile], folder: Path, on_bytes: OnBytes = ignore_bytes) -> None:
        """Download files into a folder. Keeps files that are already complete.

        Raises OSError of the folder; NoSpace before the first request if it has too little free space.
        """
        requested = list(files)
        limit_bytes = self._request.limit_bytes
        with self._errors_explained():
            total_bytes = sum(file.size_bytes or 0 for file in requested)
            if total_bytes > limit_bytes:
                raise Unreachable(RemoteProblem(ProblemKind.LIMIT, f"it has {total_bytes} bytes"))
            missing = sum(missing_bytes(file, folder / file.name) for file in requested)
            require_space(folder, missing, f"{self._request.field} {self._request.place}")
            download = Download(self._folder, self._retrier, self._stop, limit_bytes, self._deadline)
            for file in requested:
                download.fetch(file, folder / file.name, on_bytes)

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except Unreachable as error:
            raise _failure(self._request, error.problem) from error


def _failure(request: SourceRequest, problem: RemoteProblem) -> StageFailure:
    reason, code, advice = (
        FailureReason.SOURCE_UNAVAILABLE,
        ExitCode.BAD_CONFIG,
        f"correct {request.field}.uri or its credentials",
    )
    match problem.kind:
        case ProblemKind.ABSENT:
            reason, advice = request.absent, f"check {request.field}.uri"
        case ProblemKind.DENIED:
            reason, advice = FailureReason.ACCESS_DENIED, _access_advice(request)
        case ProblemKind.FORBIDDEN_ADDRESS:
            reason, advice = FailureReason.ADDRESS_REFUSED, "use another server"
        case ProblemKind.UNTRUSTED:
            advice = (
                "add the certificate of its authority as key caBundle to the Secret of"
                f" {request.field}.credentialsSecretRef"
            )
        case ProblemKind.LIMIT:
            reason = FailureReason.SOURCE_TOO_LARGE
            advice = (
                f"the limits are {MAX_FILES} files, {request.limit_bytes} bytes in total and"
                f" {MAX_DOWNLOAD_SECONDS / 3600:.0f} hours; make it smaller, or put it on a volume"
            )
        case ProblemKind.TRANSIENT:
            code, advice = ExitCode.INTERNAL, "check the server and the network, then run again"
    text = problem.text.replace(request.uri, request.place)
    return StageFailure(reason, f"{request.field} {request.place}: {text}; {advice}", code)


def _access_advice(request: SourceRequest) -> str:
    """Return what to do after a denial. Many servers deny access to missing objects too."""
    keys = valid_keys(request.uri.partition("://")[0])
    if request.credentials is None:
        return (
            f"if it exists, name a Secret with credentials for its server in"
            f" {request.field}.credentialsSecretRef; the keys are {keys}"
        )
    return f"if it exists, correct Secret {request.credentials.name}; its keys are {keys}"
