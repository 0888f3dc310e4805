"""The files of a source on a volume: one file, a folder of files, or a pattern of names."""

import fnmatch
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from finetune_trainer.contract import ExitCode, FailureReason
from finetune_trainer.data.files import (
    COMPRESSED_SUFFIXES,
    ENDINGS,
    SourceFile,
    Unreadable,
    is_data,
    readable,
)
from finetune_trainer.failure import Preempted, StageFailure

WAIT_SECONDS: Final = 60.0
"""How long a source may take to appear: the kubelet fills the volume of a late ConfigMap on its next sync."""
POLL_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


def find_files(
    path: Path, uri: str, stop: threading.Event, wait_seconds: float = WAIT_SECONDS
) -> list[SourceFile]:
    """The source's files sorted by name, as soon as there is one.

    Raises StageFailure (SOURCE_NOT_FOUND) naming `uri`, Preempted.
    """
    deadline = time.monotonic() + wait_seconds
    said = False
    while not (files := _list(path, uri)):
        if time.monotonic() >= deadline:
            raise StageFailure(FailureReason.SOURCE_NOT_FOUND, f"{uri}: {_absence(path)}", ExitCode.BAD_DATA)
        if not said:
            logger.info("waiting up to %.0f s for %s to appear", wait_seconds, uri)
            said = True
        if stop.wait(POLL_SECONDS):
            raise Preempted
    return [SourceFile(file) for file in files]


def is_pattern(name: str) -> bool:
    """Whether a name stands for all names that match it: `*`, `?` and `[…]` as in a shell."""
    return any(mark in name for mark in "*?[")


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that match, sorted; those with a leading dot never do."""
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern) and not name.startswith("."))


def nothing_matches(pattern: str, there: Iterable[str]) -> str:
    """What to say where no name matches."""
    names = sorted(name for name in there if not name.startswith("."))
    beside = f"there are: {', '.join(names[:10])}" if names else "nothing is there"
    return f"no file matches {pattern}, {beside}; correct source.uri"


def unreadable(uri: str, error: Unreadable) -> StageFailure:
    """The failure of a source whose files cannot be read."""
    return StageFailure(
        FailureReason.SOURCE_NOT_FOUND,
        f"{uri}: {error}; the source must be readable by uid 65532",
        ExitCode.BAD_DATA if error.lasting else ExitCode.INTERNAL,
    )


def _list(path: Path, uri: str) -> list[Path]:
    try:
        with readable(path):
            return _data_files(path)
    except Unreadable as error:
        raise unreadable(uri, error) from error


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return _of_folder(path)
    if is_pattern(path.name) and path.parent.is_dir():
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
        return [path.parent / name for name in matching(names, path.name)]
    return []


def _of_folder(path: Path) -> list[Path]:
    # Names with a leading dot are the kubelet's own, in the volume of a ConfigMap.
    files = [entry for entry in sorted(path.iterdir()) if entry.is_file() and not entry.name.startswith(".")]
    taken = [file for file in files if is_data(file.name)]
    if taken and len(taken) < len(files):
        skipped = ", ".join(file.name for file in files if file not in taken)
        packed = " ".join(sorted(COMPRESSED_SUFFIXES))
        logger.warning("not read, because it is none of %s (packed: %s): %s", ENDINGS, packed, skipped)
    return taken


def _absence(path: Path) -> str:
    if path.is_dir():
        return f"it has no file with one of the endings {ENDINGS}; add the rows there"
    if not path.parent.is_dir():
        return "not found; make it, or correct source.uri"
    there = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    if is_pattern(path.name):
        return nothing_matches(path.name, there)
    beside = f"there are: {', '.join(there[:10])}" if there else "nothing is there"
    return f"{path.name} not found, {beside}; make it, or correct source.uri"
