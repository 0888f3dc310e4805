# SPDX-License-Identifier: Apache-2.0
"""Prepares files: writes their rows to split files and reports all findings.

One pass, with several processes if there are many rows, writes every usable row to the file of its split and
indexes a few bytes of it. Duplicates and leaked rows are then found in the index and removed from the files.
Memory grows by about a hundred bytes per row; the contents of rows are only on disk.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Protocol

from finetune_trainer.data import datasetwarnings, duplicates, output, statistics
from finetune_trainer.data.batches import PreparedBatch
from finetune_trainer.data.checks.sensitivevalues import HashedValues
from finetune_trainer.data.comparison import compare
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.index import RowIndex
from finetune_trainer.data.options import Recipe
from finetune_trainer.data.reading import SourceReader, UnusedFields
from finetune_trainer.data.result import DuplicatePair, FileRecord, Prepared, RowProblem
from finetune_trainer.data.rowproblems import Code, Issue, RowPosition
from finetune_trainer.data.rowworkers import prepare_batches

MAX_PROBLEMS: Final = 1000
MAX_EXAMPLES_PER_CODE: Final = 3
"""Number of example problems per code."""

NO_TRAINING_ROWS: Final = Issue(
    Code.NO_TRAINING_ROWS,
    "no row is left to train on",
    "at least one row in the train split",
    "add rows, lower split.validation and split.test, or choose another split.seed",
)


class Listener(Protocol):
    """Receives progress and findings during a preparation. Each method may raise to end it."""

    def rows(self, count: int, bytes_read: int) -> None:
        """`count` more records were read; `bytes_read` bytes of all files have been read so far."""

    def problem(self, problem: RowProblem) -> None:
        """A problem was found. Called once per problem."""

    def duplicate(self, pair: DuplicatePair) -> None:
        """A pair of similar rows was found. Called once per pair, after all rows were read."""


class NullListener:
    """Listener that does nothing."""

    def rows(self, count: int, bytes_read: int) -> None:
        """Do nothing."""

    def problem(self, problem: RowProblem) -> None:
        """Do nothing."""

    def duplicate(self, pair: DuplicatePair) -> None:
        """Do nothing."""


def prepare(
    files: Sequence[SourceFile],
    recipe: Recipe,
    folder: Path,
    *,
    listener: Listener | None = None,
    previous: tuple[str, Iterable[Path]] | None = None,
    limit_bytes: int | None = None,
) -> Prepared:
    """Write the rows of `files` to the split files in the empty `folder`, in the order of the source.

    Unusable rows are read to the end of the source too, and reported. `previous` is the digest and the split
    files of a version to compare with. `limit_bytes` limits the size of the split files.
    Raises FileUnreadable, TooLarge, OSError about `folder`, and what the listener raises.
    """
    found = _Findings(listener or NullListener())
    reading = SourceReader(files, recipe)
    index = RowIndex()
    unused = UnusedFields()
    sensitive = HashedValues()
    redacted = combined = 0
    kept: set[str] = set()
    with (
        output.SplitWriter(folder, limit_bytes) as writer,
        closing(prepare_batches(reading, recipe)) as batches,
    ):
        for batch in batches:
            found.take(batch)
            for split, lines in batch.lines.items():
                writer.write(split, lines)
            index.extend(batch.index)
            unused.add(batch.unused, batch.known)
            sensitive.add(batch.sensitive)
            redacted += batch.redacted
            combined += batch.combined
            kept |= batch.kept_columns
    if not found.rows and not found.errors:
        found.summary([Issue(Code.FILE_EMPTY, "no rows", "at least one row", "add rows")])
    names = [file.name if len(files) > 1 else None for file in files]
    splits = index.table["split"]
    selection = duplicates.select(
        index, lambda wanted: output.read_rows(folder, splits, wanted), recipe.cleaning, names
    )
    for pair in selection.all_pairs():
        found.listener.duplicate(pair)
    split_rows = output.keep_rows(folder, index.table["split"], selection.keep)
    facts = statistics.of_rows(index, selection, redacted)
    if found.rows > found.invalid and not split_rows["train"]:
        found.summary([NO_TRAINING_ROWS])
    found.summary(datasetwarnings.ignored_names(reading.ignored_names, reading.format))
    if len(index):
        found.summary(datasetwarnings.kept_nothing(name for name in recipe.kept_columns if name not in kept))
    unread_fields = datasetwarnings.unread_fields(unused.names)
    found.summary(datasetwarnings.ignored_fields(unread_fields))
    found.summary(datasetwarnings.similar_labels(facts.labels))
    found.summary(datasetwarnings.combined_labels(combined))
    found.summary(datasetwarnings.labels_not_held_out(facts.labels, split_rows))
    found.summary(datasetwarnings.summary_issues(index, selection, split_rows, recipe))
    return Prepared(
        recipe=recipe,
        format=reading.format,
        files=tuple(FileRecord(name=file.name, bytes=file.size, sha256=file.digest) for file in files),
        rows=found.rows,
        invalid_rows=found.invalid,
        broken_files=found.broken,
        split_rows=split_rows,
        unused_fields=unused.names,
        problems=tuple(found.problems),
        error_count=found.errors,
        warning_count=found.warnings,
        counts=found.counts,
        examples={code: tuple(problems) for code, problems in found.examples.items()},
        statistics=facts,
        duplicate_pairs=selection.example_pairs,
        difference=None if previous is None else compare(index, selection.keep, *previous),
        unread_fields=unread_fields,
        untested_answers=len(datasetwarnings.not_held_out(facts.labels, split_rows, "test")),
        sensitive=sensitive.found(recipe.checks),
    )


class _Findings:
    """Counts rows and problems, keeps the first problems, and passes each one to the listener."""

    def __init__(self, listener: Listener) -> None:
        self.rows = self.invalid = self.broken = self.errors = self.warnings = 0
        self.problems: list[RowProblem] = []
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[RowProblem]] = defaultdict(list)
        self.listener = listener

    def take(self, batch: PreparedBatch) -> None:
        """Count the rows and issues of the next batch."""
        for position, issues in batch.findings:
            self._add(position, issues)
        self.rows += batch.rows
        self.invalid += batch.invalid
        self.broken += batch.broken
        self.listener.rows(batch.rows, batch.bytes_read)

    def summary(self, issues: Iterable[Issue]) -> None:
        """Add issues of all rows together."""
        self._add(RowPosition(), issues)

    def _add(self, position: RowPosition, issues: Iterable[Issue]) -> None:
        for issue in issues:
            problem = RowProblem(position, issue)
            self.listener.problem(problem)
            self.errors += issue.severity == "error"
            self.warnings += issue.severity == "warning"
            self.counts[issue.code] += 1
            if len(self.examples[issue.code]) < MAX_EXAMPLES_PER_CODE:
                self.examples[issue.code].append(problem)
            # Problems of all rows together are always kept.
            if len(self.problems) < MAX_PROBLEMS or position == RowPosition():
                self.problems.append(problem)
