# SPDX-License-Identifier: Apache-2.0
"""Lists the files of a remote folder, and reads them from any offset."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, Final

from finetune_trainer.remote.limits import CHUNK_BYTES, MAX_FILES, REQUESTS_AHEAD
from finetune_trainer.remote.remotefolder import RemoteFile, RemoteFolder, Stream
from finetune_trainer.remote.remoteproblems import ProblemKind, RemoteProblem
from finetune_trainer.remote.retries import Unreachable

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
