# SPDX-License-Identifier: Apache-2.0
"""A progress bar on the terminal for preparations that take a while."""

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
"""Min size of a source to show a bar for. Smaller sources are read too fast."""


class ProgressBar:
    """Listener that shows how many bytes were read."""

    def __init__(self, progress: "Progress", total_bytes: int) -> None:
        self._progress = progress
        self._total_bytes = total_bytes
        self._task = progress.add_task("Reading", total=total_bytes)

    def rows(self, count: int, bytes_read: int) -> None:  # noqa: ARG002 - the bar counts bytes
        """Advance the bar to `bytes_read`."""
        self._progress.update(
            self._task,
            completed=bytes_read,
            description="Comparing" if bytes_read >= self._total_bytes else "Reading",
        )

    def problem(self, problem: RowProblem) -> None:
        """Do nothing: problems are shown at the end."""

    def duplicate(self, pair: DuplicatePair) -> None:
        """Do nothing: similar rows are shown at the end."""


@contextmanager
def progress(files: Sequence[SourceFile]) -> "Iterator[Listener | None]":
    """A listener that shows a bar on stderr; None without a terminal. Raises FileUnreadable."""
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
