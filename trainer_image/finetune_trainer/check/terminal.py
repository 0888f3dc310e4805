# SPDX-License-Identifier: Apache-2.0
"""What the terminal shows: progress and report.

Preparations that take a while have a progress bar. Hints name options of the command line instead of fields
of a Dataset.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.result import DuplicatePair, RowProblem
from finetune_trainer.report.document import Document
from finetune_trainer.report.verdicts import (
    DATASET_CODES,
    RELATIONS,
    count_noun,
    headline,
    number,
    position,
    sentence,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from finetune_trainer.data.pipeline import Listener


FIELD: Final = re.compile(
    r"\b(?P<block>split|cleaning|checks|columns)\.(?P<field>[a-z][A-Za-z]*)(?:: (?P<value>[A-Za-z0-9.]+))?"
)
FORMAT: Final = re.compile(r"\b(?P<verb>set|name|leave) format\b(?:: (?P<value>[A-Za-z]+))?")
NAMED: Final = {"split.column": "split-column", "split.fromFiles": "split-from-files"}


def translate_hint(text: str) -> str:
    """Replace fields with options in a hint: `columns.prompt` becomes `--prompt`."""
    text = FIELD.sub(_option, text)
    text = FORMAT.sub(lambda found: f"{found['verb']} --format" + _value(found), text)
    text = re.sub(r"\bset template:? ", "set --template ", text)
    # Options are copied to the command line as they are.
    text = re.sub(r"(--(?:prompt|template) (?:\"[^\"]+\"|\S+)) and (?=--completion)", r"\1 ", text)
    text = re.sub(r"\bkeepColumns\b", "--keep-column", text)
    return re.sub(r"\bin columns\b", "in --columns", text)


def _option(found: re.Match[str]) -> str:
    name = NAMED.get(f"{found['block']}.{found['field']}")
    option = name or re.sub("([A-Z])", lambda letter: f"-{letter[1].lower()}", found["field"])
    return f"--{option}{_value(found)}"


def _value(found: re.Match[str]) -> str:
    value = found["value"]
    return "" if value is None or value == "true" else f" {value}"


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


MAX_SHOWN_LABELS: Final = 10
STYLES: Final = {"good": "bold green", "warning": "bold yellow", "error": "bold red"}
REMOVED: Final = (("duplicateRows", "duplicate"), ("leakedRows", "leaked row"))


def show(report: Document, console: "Console", problems: int) -> None:
    """Print the verdict, the first problems, the warnings, and the rows per split."""
    from rich.text import Text

    result = verdict(report)
    console.print(Text(result.title, STYLES[result.level]))
    if result.detail:
        console.print(Text(translate_hint(result.detail)))
    _problems(report, console, problems)
    _alike(report, console, problems)
    if report["keptRows"]:
        _splits(report, console)
        _labels(report, console)
    if report["digest"] is not None:
        console.print()
        # Not wrapped, so that it can be copied.
        console.print(Text(f"digest {report['digest']}"), soft_wrap=True)


def _problems(report: Document, console: "Console", limit: int) -> None:
    from rich.text import Text

    # Problems of all rows together are few. They are printed in full below the table.
    of_rows = [problem for problem in report["problems"] if problem["code"] not in DATASET_CODES]
    of_rows.sort(key=lambda problem: problem["severity"] != "error")
    shown = of_rows[:limit]
    if shown:
        table = _table()
        for name, ratio in (("Where", 20), ("Column", 14), ("What is wrong", 38), ("What to do", 28)):
            table.add_column(name, ratio=ratio, overflow="fold", min_width=10)
        for problem in shown:
            what = Text("" if problem["severity"] == "error" else "warning: ", STYLES["warning"])
            table.add_row(
                Text(position(problem) or "the file"),
                Text(problem["column"] or ""),
                what.append(_found(problem), "not bold default"),
                Text(translate_hint(problem["hint"])),
            )
        console.print()
        console.print(table)
    of_all = [problem for problem in report["problems"] if problem["code"] in DATASET_CODES]
    total = report["errorCount"] + report["warningCount"] - len(of_all)
    if total > len(shown):
        more = count_noun(total - len(shown), "more problem" if shown else "problem")
        _kinds(report, console, f"{more}. All problems by kind:")
    if of_all:
        console.print()
    for problem in of_all:
        _warn(problem, console)


def _kinds(report: Document, console: "Console", title: str) -> None:
    from rich.text import Text

    console.print()
    console.print(Text(title))
    table = _table(headed=False)
    table.add_column("rows", justify="right")
    table.add_column("kind", overflow="fold")
    for group in report["problemsByCode"]:
        if group["code"] not in DATASET_CODES:
            table.add_row(Text(number(group["count"])), Text(headline(group["code"])))
    console.print(table)


def _warn(problem: dict[str, Any], console: "Console") -> None:
    from rich.text import Text

    style = STYLES[problem["severity"]]
    text = Text(f"{problem['severity']}: ", style)
    text.append(translate_hint(sentence(problem)), "not bold default")
    console.print(text)


def _alike(report: Document, console: "Console", limit: int) -> None:
    """Print the rows that are removed from training, and the rows with conflicting answers."""
    from rich.text import Text

    counts = report["statistics"]
    for key, kinds in (("leakedRows", ("Leak", "GroupLeak", "NearLeak")), ("conflictingRows", ("Conflict",))):
        pairs = [pair for pair in report["alike"] if pair["kinship"] in kinds][:limit]
        if pairs:
            console.print()
        for pair in pairs:
            line = f"{position(pair['row'])} {RELATIONS[pair['kinship']]} {position(pair['of'])}"
            console.print(Text(line))
        if pairs and counts[key] > len(pairs):
            console.print(Text(f"and {number(counts[key] - len(pairs))} more"))


def _found(problem: dict[str, Any]) -> str:
    return sentence({**problem, "hint": ""})


def _splits(report: Document, console: "Console") -> None:
    from rich.text import Text

    splits = "  ".join(f"{split['name']} {number(split['rows'])}" for split in report["splits"])
    statistics = report["statistics"]
    removed = [count_noun(statistics[key], noun) for key, noun in REMOVED if statistics[key]]
    if statistics["nearDuplicateRows"] and report["preparation"]["cleaning"]["nearDuplicates"] == "Remove":
        removed.append(count_noun(statistics["nearDuplicateRows"], "near duplicate"))
    console.print()
    console.print(Text(f"{count_noun(report['keptRows'], 'row')} kept: {splits}"))
    if removed:
        console.print(Text(f"removed: {', '.join(removed)}"))
    if report["unusedFields"]:
        console.print(Text(f"unused fields: {', '.join(report['unusedFields'])}"))


def _labels(report: Document, console: "Console") -> None:
    from rich.text import Text

    labels = report["statistics"]["labels"]
    if not 0 < len(labels) <= MAX_SHOWN_LABELS:
        return
    table = _table()
    table.add_column("Answer", overflow="ellipsis", no_wrap=True, ratio=1)
    for split in report["splits"]:
        table.add_column(split["name"], justify="right", no_wrap=True)
    for label in labels:
        table.add_row(
            Text(" ".join(label["completion"].split())),
            *(_share(label["rows"][split["name"]], split["rows"]) for split in report["splits"]),
        )
    console.print()
    console.print(table)


def _share(rows: int, of: int) -> str:
    return f"{number(rows)} ({rows / of:.0%})" if of else "0"


def _table(*, headed: bool = True) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_header=headed, show_edge=False, pad_edge=False, expand=headed)
