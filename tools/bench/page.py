# SPDX-License-Identifier: Apache-2.0
"""Tables of measurements, and the parts of docs/benchmarks.md and docs/testing.md that they replace."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from rich.table import Table

from tools.bootstrap.uv import ROOT


class BenchError(Exception):
    """The measurement failed, or a target was missed; the message gives the reason."""


class Sheet(NamedTuple):
    """A table as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_terminal(self) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        ruler = ("---", *("---:",) * (len(self.columns) - 1))
        lines = (f"| {' | '.join(cells)} |" for cells in (self.columns, ruler, *self.rows))
        return f"**{self.title}**\n\n" + "\n".join(lines)


PAGE: Final = ROOT / "docs" / "benchmarks.md"
END: Final = "<!-- to here -->"


def put(page: Path, begin: str, sheets: Sequence[Sheet], measured: str) -> None:
    """Replace the text between `begin` and the next END with tables and their circumstances.

    Args:
        page: the page to change.
        begin: marker line before the tables.
        sheets: the tables.
        measured: the measured software with its version; date, commit and machine are added.

    Raises:
        BenchError: the page has no markers.
    """
    circumstances = f"{today()}, commit {commit(page)}; {measured}, {machine()}."
    replace(page, begin, "\n\n".join([circumstances, *(sheet.to_markdown() for sheet in sheets)]))


def replace(page: Path, begin: str, body: str) -> None:
    """Replace the text between `begin` and the next END with `body`.

    Raises:
        BenchError: the page has no markers.
    """
    before, _, after = _parts(page, begin)
    page.write_text(f"{before}{begin}\n{body}\n{END}{after}")


def between(page: Path, begin: str) -> str:
    """Text between `begin` and the next END.

    Raises:
        BenchError: the page has no markers.
    """
    return _parts(page, begin)[1]


def today() -> str:
    """Today's date."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def commit(page: Path) -> str:
    """The commit, and whether files other than `page` have changes."""
    # The page itself changes after each measured size.
    others = [f":(exclude){page.relative_to(ROOT)}"] if page.is_relative_to(ROOT) else []
    changed = _git("status", "--porcelain", "--", ".", *others)
    return _git("rev-parse", "--short", "HEAD") + (", changed" if changed else "")


def machine() -> str:
    """Python version, cores, memory and kernel of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"Python {platform.python_version()}; {os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, "
        f"Linux {platform.release().partition('-')[0]}"
    )


def _parts(page: Path, begin: str) -> tuple[str, str, str]:
    """Text before `begin`, between it and END, and after END."""
    before, found, rest = page.read_text().partition(begin)
    inside, end, after = rest.partition(END)
    if not (found and end):
        raise BenchError(f"{page} must have the line {begin!r} followed by {END!r}: put them back")
    return before, inside, after


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
