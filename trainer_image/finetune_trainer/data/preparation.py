"""From files to divided rows and everything that is to be said about them.

One pass writes every usable row to the file of its split and remembers a few bytes of it; then duplicates and
leaked rows are found among those bytes and left out of the files. So memory grows by about a hundred bytes a
row, and what a row says is on disk only.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from finetune_trainer.data import duplicates, output, statistics
from finetune_trainer.data.checks.scanner import Scanner
from finetune_trainer.data.cleaning import clean
from finetune_trainer.data.comparison import compare
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.index import RowIndex
from finetune_trainer.data.options import SEEN_SINCE, Recipe
from finetune_trainer.data.problems import Code, Invalid, Issue, Place
from finetune_trainer.data.reading import Reading
from finetune_trainer.data.result import FileRecord, Kin, Prepared, Problem
from finetune_trainer.data.split import split_of

PROBLEMS_KEPT: Final = 1000
EXAMPLES_KEPT: Final = 3
"""Of each code."""

NO_TRAINING_ROWS: Final = Issue(
    Code.NO_TRAINING_ROWS,
    "no row is left to train on",
    "at least one row in the train split",
    "add rows, lower split.validation and split.test, or take another split.seed",
)


class Listener(Protocol):
    """Who is told while a preparation goes on; either call may raise, to end it."""

    def row(self) -> None:
        """A record was read."""

    def problem(self, problem: Problem) -> None:
        """A problem was found; every one is told, once."""

    def alike(self, kin: Kin) -> None:
        """Two rows are alike; every pair is told, once, after all rows were read."""


class Silence:
    """A listener that needs nothing."""

    def row(self) -> None:
        """Nothing happens."""

    def problem(self, problem: Problem) -> None:
        """Nothing happens."""

    def alike(self, kin: Kin) -> None:
        """Nothing happens."""


def prepare(
    files: Sequence[SourceFile],
    recipe: Recipe,
    folder: Path,
    *,
    listener: Listener | None = None,
    previous: tuple[str, Iterable[Path]] | None = None,
    limit_bytes: int | None = None,
) -> Prepared:
    """Write the rows of `files` to the split files in `folder`, which is empty, in the order of the source.

    Also what cannot be used is read to its end and told. `previous` is another version, to be compared with:
    its digest and its split files. `limit_bytes` bounds what is written.
    Raises Unreadable, TooLarge, OSError about `folder`, and what the listener raises.
    """
    found = _Findings(listener or Silence())
    reading = Reading(files, recipe)
    index = RowIndex(as_seen=recipe.division.rule_version >= SEEN_SINCE)
    scanner = Scanner(recipe.checks)
    numbers = {file.name: number for number, file in enumerate(files)}
    redacted = 0
    with output.SplitWriter(folder, limit_bytes) as writer:
        for item in reading:
            if isinstance(item, Invalid):
                found.refuse(item)
                continue
            # The division is by the raw row, so that no cleaning ever moves one.
            split = split_of(item.raw, recipe.division)
            cleaned = clean(item.raw.row, recipe.cleaning)
            row, issues = scanner.scan(cleaned)
            if not found.accept(item.place, issues):
                continue
            redacted += row is not cleaned
            writer.write(split, row)
            index.add(
                row,
                split,
                numbers.get(item.place.file or "", 0),
                item.place.record or 0,
                shown=scanner.masked(row.output) if issues else None,
            )
    if not found.rows and not found.errors:
        found.summary([Issue(Code.FILE_EMPTY, "no rows", "at least one row", "add rows")])
    names = [file.name if len(files) > 1 else None for file in files]
    splits = index.table["split"]
    selection = duplicates.select(
        index, lambda wanted: output.read_rows(folder, splits, wanted), recipe.cleaning, names
    )
    for kin in selection.all_kin():
        found.listener.alike(kin)
    split_rows = output.keep_rows(folder, index.table["split"], selection.keep)
    facts = statistics.of_rows(index, selection, redacted)
    if found.rows > found.invalid and not split_rows["train"]:
        found.summary([NO_TRAINING_ROWS])
    found.summary(statistics.ignored_names(reading.ignored_names, reading.format))
    found.summary(statistics.unread_labels(reading.unread_labels))
    found.summary(statistics.labels_not_held_out(facts.labels, split_rows))
    found.summary(statistics.summary_issues(index, selection, split_rows, recipe))
    return Prepared(
        recipe=recipe,
        format=reading.format,
        files=tuple(FileRecord(name=file.name, bytes=file.size, sha256=file.digest) for file in files),
        rows=found.rows,
        invalid_rows=found.invalid,
        broken_files=found.broken,
        split_rows=split_rows,
        unused_fields=reading.unused,
        problems=tuple(found.problems),
        error_count=found.errors,
        warning_count=found.warnings,
        counts=found.counts,
        examples={code: tuple(problems) for code, problems in found.examples.items()},
        statistics=facts,
        kin=selection.kin,
        difference=None if previous is None else compare(index, selection.keep, *previous),
        untested_answers=len(statistics.not_held_out(facts.labels, split_rows, "test")),
        unread_labels=reading.unread_labels,
    )


class _Findings:
    """Counts rows and problems, keeps the first of them, and tells the listener every one."""

    def __init__(self, listener: Listener) -> None:
        self.rows = self.invalid = self.broken = self.errors = self.warnings = 0
        self.problems: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[Problem]] = defaultdict(list)
        self.listener = listener

    def accept(self, place: Place, issues: Sequence[Issue]) -> bool:
        """Count a row that was read; whether it can be used."""
        self._add(place, issues)
        is_valid = all(issue.severity == "warning" for issue in issues)
        self.invalid += not is_valid
        self.rows += 1
        self.listener.row()
        return is_valid

    def refuse(self, invalid: Invalid) -> None:
        """Count a row that cannot be read, or a file that cannot be read to its end."""
        self._add(invalid.place, invalid.issues)
        if invalid.ends_file:
            self.broken += 1
        else:
            self.rows += 1
            self.invalid += 1
        self.listener.row()

    def summary(self, issues: Iterable[Issue]) -> None:
        """Add what is to be said of all rows together."""
        self._add(Place(), issues)

    def _add(self, place: Place, issues: Iterable[Issue]) -> None:
        for issue in issues:
            problem = Problem(place, issue)
            self.listener.problem(problem)
            self.errors += issue.severity == "error"
            self.warnings += issue.severity == "warning"
            self.counts[issue.code] += 1
            if len(self.examples[issue.code]) < EXAMPLES_KEPT:
                self.examples[issue.code].append(problem)
            # What is to be said of all rows is never left out for what is to be said of one.
            if len(self.problems) < PROBLEMS_KEPT or place == Place():
                self.problems.append(problem)
