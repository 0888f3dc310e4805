# SPDX-License-Identifier: Apache-2.0
"""Sources of rows: lists their files on a volume of this pod or at a remote server, and opens them.

On a volume, a source is one file, a folder of files, or a pattern of names. Remote files are downloaded.
"""

import fnmatch
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from finetune_trainer import canonical_json
from finetune_trainer.contract.configs import PrepareConfig, SourceConfig
from finetune_trainer.contract.environment import SOURCES_MOUNT
from finetune_trainer.contract.references import strip_query
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.data.files import (
    COMPRESSED_SUFFIXES,
    ENDINGS,
    Budget,
    FileChanged,
    FileUnreadable,
    SourceFile,
    convert_read_errors,
    is_data,
    unpacking_budget,
)
from finetune_trainer.data.row_problems import printable
from finetune_trainer.manifest import digest_of
from finetune_trainer.remote.remote_folder import MAX_SOURCE_BYTES, RemoteFile
from finetune_trainer.remote.source import RemoteSource, SourceRequest
from finetune_trainer.rooted_open import kind_of, names_in, root_of
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.store import RunFolder

WAIT_SECONDS: Final = 60.0
"""Max time for a source to appear. The kubelet fills the volume of a late ConfigMap on its next sync."""
POLL_SECONDS: Final = 1.0
MAX_NAMES_IN_MESSAGE: Final = 10
"""Max file names in a message."""

CONFIGMAP: Final = "configmap://"

logger = logging.getLogger(__name__)


def find_files(
    path: Path,
    uri: str,
    stop: threading.Event,
    wait_seconds: float = WAIT_SECONDS,
    *,
    root: Path,
    field: str = "source",
    budget: Budget | None = None,
) -> list[SourceFile]:
    """Wait for the source's files and return them sorted by name. All of them are beneath `root`.

    `field` is that of the spec, for messages. All files share the budget for their unpacked content.

    Raises StageFailure (SOURCE_NOT_FOUND) naming `uri`, Preempted.
    """
    deadline = time.monotonic() + wait_seconds
    logged = False
    while not (files := _list(path, uri, root)):
        if time.monotonic() >= deadline:
            with _read_errors(path, uri):
                message = f"{uri}: {_why_missing(path, uri, root, field)}"
            raise StageFailure(FailureReason.SOURCE_NOT_FOUND, message, ExitCode.BAD_DATA)
        if not logged:
            logger.info("waiting up to %.0f s for %s to appear", wait_seconds, uri)
            logged = True
        if stop.wait(POLL_SECONDS):
            raise Preempted
    budget = budget or unpacking_budget()
    return [SourceFile(file, root=root, budget=budget) for file in files]


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern with `*`, `?` or `[…]` as in a shell."""
    return any(mark in name for mark in "*?[")


def match_names(names: Iterable[str], pattern: str) -> list[str]:
    """The names that match, sorted. Names with a leading dot never match."""
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern) and not name.startswith("."))


def nothing_matches(pattern: str, present: Iterable[str], field: str) -> str:
    """Message for a pattern that no name matches; `field` is that of the spec."""
    names = sorted(name for name in present if not name.startswith("."))
    return f"no file matches {pattern}; {_contents(names)}; correct {field}.uri"


def no_data_files() -> str:
    """Message for a folder without files of rows."""
    return f"the folder has no file with a supported extension ({ENDINGS}); add the rows there"


def unreadable_failure(uri: str, error: FileUnreadable) -> StageFailure:
    """The failure of a source whose files cannot be read."""
    return StageFailure(
        FailureReason.SOURCE_UNAVAILABLE
        if isinstance(error, FileChanged)
        else FailureReason.SOURCE_NOT_FOUND,
        f"{uri}: {error}"
        + (
            ""
            if error.refused or isinstance(error, FileChanged)
            else "; the source must be readable by uid 65532"
        ),
        ExitCode.BAD_DATA if error.lasting else ExitCode.INTERNAL,
    )


@contextmanager
def _read_errors(path: Path, uri: str) -> Iterator[None]:
    try:
        with convert_read_errors(path):
            yield
    except FileUnreadable as error:
        raise unreadable_failure(uri, error) from error


def _list(path: Path, uri: str, root: Path) -> list[Path]:
    with _read_errors(path, uri):
        return _data_files(path, root)


def _data_files(path: Path, root: Path) -> list[Path]:
    match kind_of(path, root):
        case "File":
            return [path]
        case "Folder":
            return _data_files_in(path, root)
    if is_pattern(path.name) and kind_of(path.parent, root) == "Folder":
        names = match_names(names_in(path.parent, root), path.name)
        return [path.parent / name for name in names if kind_of(path.parent / name, root) == "File"]
    return []


def _data_files_in(path: Path, root: Path) -> list[Path]:
    # In the volume of a ConfigMap, names with a leading dot belong to the kubelet.
    names = [name for name in names_in(path, root, with_folders=False) if not name.startswith(".")]
    taken = [name for name in names if is_data(name) and kind_of(path / name, root) == "File"]
    if taken and len(taken) < len(names):
        skipped = _first([name for name in names if name not in taken])
        compressed = " ".join(sorted(COMPRESSED_SUFFIXES))
        logger.warning(
            "skipped files without a supported extension (%s, compressed: %s): %s",
            ENDINGS,
            compressed,
            skipped,
        )
    return [path / name for name in taken]


def _why_missing(path: Path, uri: str, root: Path, field: str) -> str:
    if kind_of(path, root) == "Folder":
        return no_data_files()
    if kind_of(path.parent, root) != "Folder":
        return f"not found; create it, or correct {field}.uri"
    names = [name for name in names_in(path.parent, root) if not name.startswith(".")]
    if not names and uri.startswith(CONFIGMAP):
        name = uri.removeprefix(CONFIGMAP).partition("/")[0]
        what = f"ConfigMap {name} does not exist in this namespace, or has no keys"
        return f"{what}; create it, or correct {field}.uri"
    if is_pattern(path.name):
        return nothing_matches(path.name, names, field)
    return f"{path.name} not found; {_contents(names)}; create it, or correct {field}.uri"


def _contents(names: Sequence[str]) -> str:
    return f"the folder has: {_first(names)}" if names else "the folder is empty"


def _first(names: Sequence[str]) -> str:
    """The first names, escaped, because a file system accepts almost any character."""
    more = f" and {len(names) - MAX_NAMES_IN_MESSAGE} more" if len(names) > MAX_NAMES_IN_MESSAGE else ""
    return printable(", ".join(names[:MAX_NAMES_IN_MESSAGE])) + more


DOWNLOAD: Final = "source"
"""Folder in the run's folder, followed by the number of the source. If a pod is stopped, the next pod resumes
the download from it."""


class MountedRows:
    """Files on a volume of the pod.

    `version` identifies the content by the names, sizes and modification times of the files. For a ConfigMap
    it hashes the bytes, because the kubelet writes the files anew for every pod.
    """

    revision = None

    def __init__(
        self,
        path: Path,
        uri: str,
        stop: threading.Event,
        *,
        number: int = 0,
        field: str = "source",
        budget: Budget | None = None,
    ) -> None:
        """`number` is that of the source, `field` the field of the spec that names it."""
        root = root_of(path, f"{SOURCES_MOUNT}/{number}")
        self._files = find_files(path, uri, stop, root=root, field=field, budget=budget)
        is_configmap = uri.startswith(CONFIGMAP)
        try:
            entries = [
                [file.name, _content(file) if is_configmap else [file.size, file.modified]]
                for file in self._files
            ]
        except FileUnreadable as error:
            raise unreadable_failure(uri, error) from error
        self.version = digest_of(canonical_json.encode(entries))

    @contextmanager
    def readable(self, folder: RunFolder) -> Iterator[list[SourceFile]]:  # noqa: ARG002 - as in RemoteRows
        """The files, until the block ends."""
        yield self._files


class RemoteRows:
    """Files of a remote source: listed at once, downloaded by `readable`.

    `revision` is the commit of a source at the hub. `version` is None if the server reports neither versions
    nor times.
    """

    def __init__(self, source: SourceConfig, number: int, budget: Budget, stop: threading.Event) -> None:
        uri, pattern = _split_pattern(source.uri)
        self._uri = strip_query(source.uri)
        self._field = source.field
        self._budget = budget
        self._download = f"{DOWNLOAD}-{number}"
        self._remote = RemoteSource(
            SourceRequest(
                uri=uri,
                field=source.field,
                credentials=source.credentials,
                absent=FailureReason.SOURCE_NOT_FOUND,
                limit_bytes=MAX_SOURCE_BYTES,
            ),
            stop,
        )
        self._files = self._select(pattern)
        self.revision = self._remote.revision
        self.version = self._remote.version(self._files)

    @contextmanager
    def readable(self, folder: RunFolder) -> Iterator[list[SourceFile]]:
        """The files, downloaded into the run's folder until the block ends. A stopped pod leaves them.

        Raises StageFailure as `RemoteSource`; Preempted.
        """
        logger.info("downloading %d files of %s", len(self._files), self._uri)
        with folder.writable(self._download) as target:
            self._remote.download(self._files, target)
        try:
            yield [SourceFile(target / file.name, root=target, budget=self._budget) for file in self._files]
        except StageFailure:
            folder.remove(self._download)
            raise
        folder.remove(self._download)

    def _select(self, pattern: str | None) -> list[RemoteFile]:
        files = {file.name: file for file in self._remote.files}
        if pattern is not None:
            names, problem = match_names(files, pattern), nothing_matches(pattern, files, self._field)
        elif self._remote.is_file:
            return list(files.values())
        else:
            names = [name for name in files if is_data(name)]
            problem = no_data_files()
        if not names:
            raise StageFailure(FailureReason.SOURCE_NOT_FOUND, f"{self._uri}: {problem}", ExitCode.BAD_DATA)
        return [files[name] for name in names]


Rows = MountedRows | RemoteRows


def open_sources(config: PrepareConfig, stop: threading.Event) -> list[Rows]:
    """Open the config's sources and list their files. All of them share the limit of unpacked bytes.

    Raises StageFailure: SOURCE_NOT_FOUND, and for a remote source whatever `RemoteSource` raises; Preempted.
    """
    budget = unpacking_budget(config.max_unpacked_bytes)
    return [_opened(source, number, budget, stop) for number, source in enumerate(config.sources)]


def _opened(source: SourceConfig, number: int, budget: Budget, stop: threading.Event) -> Rows:
    if source.path is None:
        return RemoteRows(source, number, budget, stop)
    return MountedRows(Path(source.path), source.uri, stop, number=number, field=source.field, budget=budget)


def _split_pattern(uri: str) -> tuple[str, str | None]:
    """The folder and the pattern of names in it. A web server cannot list folders."""
    parent, _, last = uri.rpartition("/")
    if uri.startswith("https://") or not is_pattern(last):
        return uri, None
    return parent, last


def _content(file: SourceFile) -> str:
    with file.as_stored() as content:
        return digest_of(content.read())
