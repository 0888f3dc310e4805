# SPDX-License-Identifier: Apache-2.0
"""Prepares files: writes their rows to split files and reports all findings.

One pass, with several processes if there are many rows, writes every usable row to the file of its split and
indexes a few bytes of it. Duplicates and leaked rows are then found in the index and removed from the files.
Memory grows by about a hundred bytes per row; the contents of rows are only on disk.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from finetune_trainer.contract.vocabulary import RowForm, SplitName
from finetune_trainer.data import dataset_warnings, duplicates, split_files, statistics
from finetune_trainer.data.batches import PreparedBatch, prepare_batches
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.reading import SourceFiles, SourcesReader, UnusedFields
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.result import (
    DuplicatePair,
    FileRecord,
    HashedValues,
    Prepared,
    RowProblem,
    SourceSummary,
)
from finetune_trainer.data.row_index import SPLITS, RowIndex
from finetune_trainer.data.row_problems import Code, Issue, RowPosition
from finetune_trainer.data.version_comparison import EarlierVersion, compare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    limit_bytes: int | None = None,
) -> Prepared:
    """Prepare the files of one source, as `prepare_sources` does."""
    source = SourceFiles(files=files, recipe=recipe)
    return prepare_sources([source], folder, listener=listener, limit_bytes=limit_bytes)


def prepare_sources(
    sources: Sequence[SourceFiles],
    folder: Path,
    *,
    listener: Listener | None = None,
    previous: EarlierVersion | None = None,
    limit_bytes: int | None = None,
) -> Prepared:
    """Write the rows of `sources` to the split files in the empty `folder`, in the order of the sources.

    Unusable rows are read to the end of the sources too, and reported. `previous` is a version to compare
    with. `limit_bytes` limits the size of the split files.
    Raises FileUnreadable, TooLarge, OSError about `folder`, and what the listener raises.
    """
    recipes = [source.recipe for source in sources]
    recipe = recipes[0]
    reading = SourcesReader(sources)
    named = _names(sources)
    found = _Findings(listener or NullListener(), named)
    index = RowIndex()
    unused = UnusedFields()
    sensitive = HashedValues()
    redacted = combined = 0
    kept: set[str] = set()
    forms: dict[int, RowForm] = {}
    with (
        split_files.SplitWriter(folder, limit_bytes) as writer,
        closing(prepare_batches(reading, recipes)) as batches,
    ):
        for batch in batches:
            found.take(batch)
            for split, lines in batch.lines.items():
                writer.write(split, lines)
            if batch.index.form is not None:
                forms.setdefault(batch.source, batch.index.form)
            index.extend(batch.index)
            unused.add(batch.unused, batch.known)
            sensitive.add(batch.sensitive)
            redacted += batch.redacted
            combined += batch.combined
            kept |= batch.kept_columns
    found.empty_sources()
    formats = [reader.format for reader in reading.readers]
    mixed = list(
        dataset_warnings.differing_forms(
            [
                (name, form, forms[number])
                for number, (name, form) in enumerate(zip(named, formats, strict=True))
                if name is not None and form is not None and number in forms
            ]
        )
    )
    found.summary(mixed)
    splits = index.table["split"]
    selection = duplicates.select(
        index,
        lambda wanted: split_files.read_rows(folder, splits, wanted),
        recipe.cleaning,
        _places(sources, named),
    )
    for pair in selection.all_pairs():
        found.listener.duplicate(pair)
    split_rows = split_files.keep_rows(folder, index.table["split"], selection.keep)
    facts = statistics.compute_statistics(index, selection, redacted)
    if found.rows > found.invalid and not split_rows["train"]:
        found.summary([NO_TRAINING_ROWS])
    for reader, name in zip(reading.readers, named, strict=True):
        found.summary(dataset_warnings.ignored_names(reader.ignored_names, reader.format, name))
    if len(index):
        found.summary(dataset_warnings.kept_nothing(name for name in recipe.kept_columns if name not in kept))
    unread_fields = dataset_warnings.unread_fields(unused.names)
    found.summary(dataset_warnings.ignored_fields(unread_fields))
    found.summary(dataset_warnings.similar_labels(facts.labels))
    found.summary(dataset_warnings.combined_labels(combined))
    found.summary(dataset_warnings.labels_not_held_out(facts.labels, split_rows))
    only_trains = all(each.splits == "TrainOnly" for each in recipes)
    found.summary(
        dataset_warnings.summary_issues(index, selection, split_rows, recipe, only_trains=only_trains)
    )
    origin = _sources_of(index, sources)
    return Prepared(
        recipe=recipe,
        format=formats[0] if len(set(formats)) == 1 else None,
        files=tuple(
            FileRecord(name=file.name, bytes=file.size, sha256=file.digest, source=name)
            for source, name in zip(sources, named, strict=True)
            for file in source.files
        ),
        rows=found.rows,
        invalid_rows=found.invalid,
        broken_files=found.broken,
        forms_differ=bool(mixed),
        sources=tuple(
            SourceSummary(
                name=source.name,
                recipe=source.recipe,
                format=form,
                rows=found.source_rows[number],
                invalid_rows=found.source_invalid[number],
                leaked_rows=int((selection.leaks & (origin == number)).sum()),
                split_rows=_split_rows(index, selection.keep & (origin == number)),
            )
            for number, (source, form) in enumerate(zip(sources, formats, strict=True))
        ),
        split_rows=split_rows,
        unused_fields=unused.names,
        problems=tuple(found.problems),
        error_count=found.errors,
        warning_count=found.warnings,
        counts=found.counts,
        examples={code: tuple(problems) for code, problems in found.examples.items()},
        statistics=facts,
        duplicate_pairs=selection.example_pairs,
        difference=None
        if previous is None
        else compare(index, selection.keep, previous, origin, [source.name or "" for source in sources]),
        unread_fields=unread_fields,
        untested_answers=len(dataset_warnings.not_held_out(facts.labels, split_rows, "test")),
        sensitive=sensitive.found(recipe.checks),
    )


def _names(sources: Sequence[SourceFiles]) -> list[str | None]:
    """A name for positions in each source: unique, and None if there is one source only."""
    if len(sources) == 1:
        return [None]
    names = [source.name or f"source {number}" for number, source in enumerate(sources)]
    return [
        name if names.count(name) == 1 else f"{name} (sources[{number}])" for number, name in enumerate(names)
    ]


def _places(sources: Sequence[SourceFiles], names: Sequence[str | None]) -> list[RowPosition]:
    """The position of each file of all sources."""
    return [
        RowPosition(file.name if len(source.files) > 1 else None, source=name)
        for source, name in zip(sources, names, strict=True)
        for file in source.files
    ]


def _sources_of(index: RowIndex, sources: Sequence[SourceFiles]) -> "NDArray[np.int64]":
    """The number of the source of each row."""
    import numpy as np

    numbers = np.repeat(np.arange(len(sources)), [len(source.files) for source in sources])
    found: NDArray[np.int64] = numbers[index.table["file"]]
    return found


def _split_rows(index: RowIndex, among: "NDArray[np.bool_]") -> Mapping[SplitName, int]:
    import numpy as np

    counts = np.bincount(index.table["split"][among], minlength=len(SPLITS)).tolist()
    return dict(zip(SPLITS, counts, strict=True))


class _Findings:
    """Counts rows and problems, keeps the first problems, and passes each one to the listener."""

    def __init__(self, listener: Listener, sources: Sequence[str | None]) -> None:
        self.rows = self.invalid = self.broken = self.errors = self.warnings = 0
        self.source_rows: Counter[int] = Counter()
        self.source_invalid: Counter[int] = Counter()
        self._sources = sources
        self._with_errors: set[int] = set()
        self.problems: list[RowProblem] = []
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[RowProblem]] = defaultdict(list)
        self.listener = listener

    def take(self, batch: PreparedBatch) -> None:
        """Count the rows and issues of the next batch."""
        source = self._sources[batch.source]
        for position, issues in batch.findings:
            self._add(position if source is None else replace(position, source=source), issues)
            if any(issue.severity == "error" for issue in issues):
                self._with_errors.add(batch.source)
        self.rows += batch.rows
        self.invalid += batch.invalid
        self.source_rows[batch.source] += batch.rows
        self.source_invalid[batch.source] += batch.invalid
        self.broken += batch.broken
        self.listener.rows(batch.rows, batch.bytes_read)

    def empty_sources(self) -> None:
        """Add an error for each source that has no rows and no error."""
        for number, name in enumerate(self._sources):
            if not self.source_rows[number] and number not in self._with_errors:
                empty = Issue(Code.FILE_EMPTY, "no rows", "at least one row", "add rows")
                self._add(RowPosition(source=name), [empty])

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
