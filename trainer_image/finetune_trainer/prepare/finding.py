"""The files of a source on a volume: one file, a folder of files, or a pattern of names."""

import fnmatch
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from finetune_trainer.beneath import kind_of, names_in
from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.data.files import (
    COMPRESSED_SUFFIXES,
    ENDINGS,
    FileChanged,
    FileUnreadable,
    SourceFile,
    is_data,
    readable,
)
from finetune_trainer.data.textchecks import printable
from finetune_trainer.data.unpacking import unpacking_budget
from finetune_trainer.runtime.failure import Preempted, StageFailure

WAIT_SECONDS: Final = 60.0
"""How long a source may take to appear: the kubelet fills the volume of a late ConfigMap on its next sync."""
POLL_SECONDS: Final = 1.0
MAX_NAMES_IN_MESSAGE: Final = 10
"""Of files that a message lists."""

logger = logging.getLogger(__name__)


def find_files(
    path: Path,
    uri: str,
    stop: threading.Event,
    wait_seconds: float = WAIT_SECONDS,
    *,
    root: Path,
    limit_bytes: int | None = None,
) -> list[SourceFile]:
    """The source's files sorted by name, as soon as there is one; all of them lie beneath `root`.

    They are read up to `limit_bytes` in all, unpacked.

    Raises StageFailure (SOURCE_NOT_FOUND) naming `uri`, Preempted.
    """
    deadline = time.monotonic() + wait_seconds
    said = False
    while not (files := _list(path, uri, root)):
        if time.monotonic() >= deadline:
            with _explained(path, uri):
                message = f"{uri}: {_absence(path, root)}"
            raise StageFailure(FailureReason.SOURCE_NOT_FOUND, message, ExitCode.BAD_DATA)
        if not said:
            logger.info("waiting up to %.0f s for %s to appear", wait_seconds, uri)
            said = True
        if stop.wait(POLL_SECONDS):
            raise Preempted
    budget = unpacking_budget(limit_bytes)
    return [SourceFile(file, root=root, budget=budget) for file in files]


def is_pattern(name: str) -> bool:
    """Whether a name stands for all names that match it: `*`, `?` and `[…]` as in a shell."""
    return any(mark in name for mark in "*?[")


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that match, sorted; those with a leading dot never do."""
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern) and not name.startswith("."))


def nothing_matches(pattern: str, there: Iterable[str]) -> str:
    """What to say where no name matches."""
    names = sorted(name for name in there if not name.startswith("."))
    beside = f"there are: {_first(names)}" if names else "nothing is there"
    return f"no file matches {pattern}, {beside}; correct source.uri"


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
def _explained(path: Path, uri: str) -> Iterator[None]:
    try:
        with readable(path):
            yield
    except FileUnreadable as error:
        raise unreadable(uri, error) from error


def _list(path: Path, uri: str, root: Path) -> list[Path]:
    with _explained(path, uri):
        return _data_files(path, root)


def _data_files(path: Path, root: Path) -> list[Path]:
    match kind_of(path, root):
        case "File":
            return [path]
        case "Folder":
            return _of_folder(path, root)
    if is_pattern(path.name) and kind_of(path.parent, root) == "Folder":
        names = matching(names_in(path.parent, root), path.name)
        return [path.parent / name for name in names if kind_of(path.parent / name, root) == "File"]
    return []


def _of_folder(path: Path, root: Path) -> list[Path]:
    # Names with a leading dot are the kubelet's own, in the volume of a ConfigMap.
    names = [name for name in names_in(path, root, with_folders=False) if not name.startswith(".")]
    taken = [name for name in names if is_data(name) and kind_of(path / name, root) == "File"]
    if taken and len(taken) < len(names):
        skipped = _first([name for name in names if name not in taken])
        packed = " ".join(sorted(COMPRESSED_SUFFIXES))
        logger.warning("not read, because it is none of %s (packed: %s): %s", ENDINGS, packed, skipped)
    return [path / name for name in taken]


def _absence(path: Path, root: Path) -> str:
    if kind_of(path, root) == "Folder":
        return f"it has no file with one of the endings {ENDINGS}; add the rows there"
    if kind_of(path.parent, root) != "Folder":
        return "not found; make it, or correct source.uri"
    there = [name for name in names_in(path.parent, root) if not name.startswith(".")]
    if is_pattern(path.name):
        return nothing_matches(path.name, there)
    beside = f"there are: {_first(there)}" if there else "nothing is there"
    return f"{path.name} not found, {beside}; make it, or correct source.uri"


def _first(names: Sequence[str]) -> str:
    """The first names, which may be anything that a file system takes."""
    more = f" and {len(names) - MAX_NAMES_IN_MESSAGE} more" if len(names) > MAX_NAMES_IN_MESSAGE else ""
    return printable(", ".join(names[:MAX_NAMES_IN_MESSAGE])) + more
