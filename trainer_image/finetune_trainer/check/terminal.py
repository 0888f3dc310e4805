# SPDX-License-Identifier: Apache-2.0
"""What the terminal shows: progress and report.

Preparations that take a while have a progress bar. Hints name options of the command line instead of fields
of a Dataset.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from finetune_trainer.data.column_guess import ColumnGuess
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.formats.field_meanings import columns_block
from finetune_trainer.data.recipe import FieldNames
from finetune_trainer.data.result import DuplicatePair, RowProblem
from finetune_trainer.data.row_problems import printable, show_hidden_characters
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
BLOCK: Final = re.compile(r"\bcolumns: (\{[^}]*\})")
NAMED: Final = {"split.column": "split-column", "split.fromFiles": "split-from-files"}


def translate_hint(text: str) -> str:
    """Replace fields with options in a hint: `columns.prompt` becomes `--prompt`."""
    text = BLOCK.sub(lambda found: _column_options(found[1]), text)
    text = FIELD.sub(_option, text)
    text = FORMAT.sub(lambda found: f"{found['verb']} --format" + _value(found), text)
    text = re.sub(r"\bset template:? ", "set --template ", text)
    # Options are copied to the command line as they are.
    text = re.sub(r"(--(?:prompt|template) (?:\"[^\"]+\"|\S+)) and (?=--completion)", r"\1 ", text)
    text = re.sub(r"\bkeepColumns\b", "--keep-column", text)
    return re.sub(r"\bin columns\b", "in --columns", text)


def _column_options(block: str) -> str:
    """Options for a YAML object of roles and columns, such as {prompt: message, completion: team}."""
    pairs = (part.partition(":") for part in block.strip("{}").split(","))
    names = {role.strip(): name.strip() for role, _, name in pairs}
    return column_options(
        FieldNames(
            **{role: json.loads(name) if name.startswith('"') else name for role, name in names.items()}
        )
    )


def column_options(names: FieldNames) -> str:
    """The options that name these columns, for a shell."""
    options = ((f"--{each.name}", getattr(names, each.name)) for each in fields(names))
    return shlex.join(part for option, name in options if name is not None for part in (option, name))


def _option(found: re.Match[str]) -> str:
    name = NAMED.get(f"{found['block']}.{found['field']}")
    option = name or re.sub("([A-Z])", lambda letter: f"-{letter[1].lower()}", found["field"])
    return f"--{option}{_value(found)}"


def _value(found: re.Match[str]) -> str:
    value = found["value"]
    return "" if value is None or value == "true" else f" {value}"


def show_guess(guess: ColumnGuess, console: "Console") -> None:
    """Print the columns of a file, and which of them are read as what."""
    from rich.text import Text

    if guess.names is None:
        return
    roles = {each.name: getattr(guess.names, each.name) for each in fields(guess.names)}
    read = ", ".join(f"{role} = {printable(name)}" for role, name in roles.items() if name is not None)
    options = " ".join(
        f"--{role} {'TEXT' if role == 'template' else 'COLUMN'}"
        for role, name in roles.items()
        if name is not None
    )
    console.print(Text(f"{_shown_columns(guess)}."))
    console.print(Text(f"Guessed by their names: {read}. To change it: {options}"))
    console.print(Text(f"In the source of a Dataset: {columns_block(guess.names)}"), soft_wrap=True)
    console.print()


def show_missing_guess(guess: ColumnGuess, console: "Console", command: str) -> None:
    """Print the columns of a file of which none was guessed, and a command that names two of them."""
    from rich.text import Text

    console.print()
    console.print(Text(f"{_shown_columns(guess)}."))
    if len(guess.columns) == 1:
        console.print(
            Text("A row needs a prompt and the answer to learn: add a column with the answers, then run")
        )
    elif guess.suggested is None:
        console.print(Text("Name the column of the prompt and that of the answer, for example"))
    else:
        console.print(Text("Their names do not say which is the prompt. By the content, probably:"))
    names = guess.suggested or FieldNames(
        prompt=guess.columns[0], completion=[*guess.columns[1:], "COLUMN"][0]
    )
    # Not wrapped, so that it can be copied.
    console.print(Text(f"  {command} {column_options(names)}"), soft_wrap=True)


MAX_SHOWN_COLUMNS: Final = 20
MAX_COLUMN_CHARACTERS: Final = 40


def _shown_columns(guess: ColumnGuess) -> str:
    short = [
        printable(name if len(name) <= MAX_COLUMN_CHARACTERS else f"{name[: MAX_COLUMN_CHARACTERS - 1]}…")
        for name in guess.columns[:MAX_SHOWN_COLUMNS]
    ]
    more = len(guess.columns) - len(short)
    noun = "the column" if len(guess.columns) == 1 else "the columns"
    return (
        f"{guess.file} ({guess.container}) has {noun} {', '.join(short)}{f' and {more} more' if more else ''}"
    )


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
    # The verdict has the only problem of a file in full.
    is_in_verdict = len(of_rows) == 1 and of_rows[0]["record"] is None and not report["rows"]
    if shown and not is_in_verdict:
        table = _table()
        columns = [fold_path(problem["column"] or "", MAX_PATH_WIDTH) for problem in shown]
        widest = max(len(line) for column in columns for line in column.split("\n"))
        table.add_column("Where", ratio=20, overflow="fold")
        table.add_column("Column", width=min(max(widest, len("Column")), MAX_COLUMN_WIDTH), overflow="fold")
        table.add_column("What is wrong", ratio=38, overflow="fold")
        table.add_column("What to do", ratio=28, overflow="fold")
        for problem, column in zip(shown, columns, strict=True):
            what = Text("" if problem["severity"] == "error" else "warning: ", STYLES["warning"])
            table.add_row(
                Text(position(problem) or "the file"),
                Text(column),
                what.append(_found(problem), "not bold default"),
                Text(translate_hint(problem["hint"])),
            )
        console.print()
        console.print(table)
    of_all = [problem for problem in report["problems"] if problem["code"] in DATASET_CODES]
    total = report["errorCount"] + report["warningCount"] - len(of_all)
    if total > len(shown) and not is_in_verdict:
        more = count_noun(total - len(shown), "more problem" if shown else "problem")
        _kinds(report, console, f"{more}. All problems by kind:")
    if of_all:
        console.print()
    for problem in of_all:
        _warn(problem, console)


MAX_PATH_WIDTH: Final = 16
"""Width at which paths are folded at their dots."""
MAX_COLUMN_WIDTH: Final = 24
"""Width at which parts of a path are folded."""


def fold_path(path: str, width: int) -> str:
    """A path such as `messages[2].tool_calls[0].id` on lines of at most `width` characters, folded at dots.

    A part that is longer has a line of its own.
    """
    lines = [""]
    for part in re.findall(r"\.?[^.]+|\.", path):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


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
            Text(_shown_label(label["completion"])),
            *(_share(label["rows"][split["name"]], split["rows"]) for split in report["splits"]),
        )
    console.print()
    console.print(table)


def _shown_label(text: str) -> str:
    """A label on one line, with the outer spaces and hidden characters of a single line visible."""
    return " ".join(text.split()) if "\n" in text else show_hidden_characters(text)[1:-1]


def _share(rows: int, of: int) -> str:
    return f"{number(rows)} ({rows / of:.0%})" if of else "0"


def _table(*, headed: bool = True) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_header=headed, show_edge=False, pad_edge=False, expand=headed)
