"""How far a preparation is, on the terminal, where it takes long enough to ask."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.result import DuplicatePair, RowProblem

if TYPE_CHECKING:
    from rich.progress import Progress

    from finetune_trainer.data.pipeline import Listener

MIN_BYTES_FOR_BAR: Final = 4 << 20
"""Smaller sources are read before anybody could read a bar."""


class ProgressBar:
    """Tells a bar how many bytes were read."""

    def __init__(self, progress: "Progress", size: int) -> None:
        self._progress = progress
        self._size = size
        self._task = progress.add_task("Reading", total=size)

    def rows(self, count: int, bytes_read: int) -> None:  # noqa: ARG002 - the bar is of bytes
        """Records were read."""
        self._progress.update(
            self._task,
            completed=bytes_read,
            description="Comparing" if bytes_read >= self._size else "Reading",
        )

    def problem(self, problem: RowProblem) -> None:
        """They are shown in the end."""

    def duplicate(self, pair: DuplicatePair) -> None:
        """So are they."""


@contextmanager
def progress(files: Sequence[SourceFile]) -> "Iterator[Listener | None]":
    """A listener that moves a bar on stderr; None where nobody would see it. Raises FileUnreadable."""
    size = sum(file.size for file in files)
    if size < MIN_BYTES_FOR_BAR or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        yield ProgressBar(bar, size)
