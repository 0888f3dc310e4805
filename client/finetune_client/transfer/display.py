# SPDX-License-Identifier: Apache-2.0
"""Progress of a transfer on standard error: bars on a terminal, otherwise a line from time to time."""

import time
from collections.abc import Callable
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from finetune_client.transfer.stored_files import OnBytes
from finetune_trainer.disk_space import size_text

LINE_SECONDS: Final = 10.0
"""Time between two lines when the output is not a terminal."""


class Display:
    """Shows how far the phases of a transfer are, during its block.

    Args:
        console: where to; None for standard error.
        clock: seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Show a sentence."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def phase(self, label: str, total: int) -> OnBytes:
        """Begin a phase of `total` bytes, and return the function that counts them."""
        if not self._console.is_terminal:
            return _Lines(self.say, label, total, self._clock)
        task = self._bars.add_task(label, total=total)
        return lambda count: self._bars.advance(task, count)


class _Lines:
    """Counts bytes, and writes a line when some time has passed."""

    def __init__(
        self, say: Callable[[str], None], label: str, total: int, clock: Callable[[], float]
    ) -> None:
        self._say, self._label, self._total, self._clock = say, label, total, clock
        self._count = 0
        self._shown = clock()

    def __call__(self, count: int) -> None:
        self._count += count
        now = self._clock()
        if now - self._shown >= LINE_SECONDS:
            self._shown = now
            share = 100 * self._count // self._total if self._total else 100
            done, total = size_text(self._count), size_text(self._total)
            self._say(f"{self._label}: {done} of {total} ({share} %)")
