# SPDX-License-Identifier: Apache-2.0
"""Find the files of a source on a volume: one file, a folder of files, or a pattern of names."""

import fnmatch
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from finetune_trainer.beneath import kind_of, names_in
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.data.files import (
    COMPRESSED_SUFFIXES,
    ENDINGS,
    Budget,
    FileChanged,
    FileUnreadable,
    SourceFile,
    is_data,
    readable,
    unpacking_budget,
)
from finetune_trainer.data.row_problems import printable
from finetune_trainer.runtime.failure import Preempted, StageFailure

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


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that match, sorted. Names with a leading dot never match."""
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern) and not name.startswith("."))


def nothing_matches(pattern: str, present: Iterable[str], field: str) -> str:
    """Message for a pattern that no name matches; `field` is that of the spec."""
    names = sorted(name for name in present if not name.startswith("."))
    return f"no file matches {pattern}; {_contents(names)}; correct {field}.uri"


def no_data_files() -> str:
    """Message for a folder without files of rows."""
    return f"the folder has no file with a supported extension ({ENDINGS}); add the rows there"


def unreadable(uri: str, error: FileUnreadable) -> StageFailure:
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
        with readable(path):
            yield
    except FileUnreadable as error:
        raise unreadable(uri, error) from error


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
        names = matching(names_in(path.parent, root), path.name)
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
