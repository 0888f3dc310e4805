"""What a preparation found: plain facts for the cluster's records, and for the report that people read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from finetune_trainer.contract.vocabulary import DataFormat, SplitName
from finetune_trainer.data.options import Recipe
from finetune_trainer.data.rowproblems import Issue, RowPosition

DuplicateKind = Literal["Exact", "Near", "Conflict", "Leak", "NearLeak"]
"""How two rows are alike: the same; nearly the same input; the same input with another answer; the same, or
nearly the same, input in training and in a held-out split."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One issue at its place."""

    position: RowPosition
    issue: Issue


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """An example of two rows that are alike; the first is the one that is left out, or told of."""

    kind: DuplicateKind
    position: RowPosition
    other: RowPosition


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows whose length is in [start, end) characters."""

    start: int
    end: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CharacterLengths:
    """Of the kept rows, in characters."""

    mean: float = 0.0
    median: float = 0.0
    p95: float = 0.0
    max: int = 0
    histogram: tuple[Bucket, ...] = ()
    """About twenty buckets of growing width."""


@dataclass(frozen=True, slots=True)
class Label:
    """One of few distinct completions, and how often each split has it."""

    completion: str
    rows: Mapping[SplitName, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Facts about the rows."""

    duplicate_rows: int = 0
    near_duplicate_rows: int | None = 0
    """None: not looked for, because it is switched off or the rows are too many."""
    leaked_rows: int = 0
    conflicting_rows: int = 0
    redacted_rows: int = 0
    prompt_characters: CharacterLengths = CharacterLengths()
    completion_characters: CharacterLengths = CharacterLengths()
    distinct_completions: int = 0
    labels: tuple[Label, ...] = ()
    """The most frequent first; empty where there are more than 50 distinct completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChanges:
    """Beside another version; a row is changed where its input stayed and its answer did not."""

    previous: str
    """Its digest."""
    added: int
    removed: int
    changed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file that was read."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All of it. Problems are bounded: the first ones; the counts are of all."""

    recipe: Recipe
    format: DataFormat | None
    """None where it could not be told."""
    files: tuple[FileRecord, ...]
    rows: int
    """Records in the files."""
    invalid_rows: int
    broken_files: int
    """Files of which the rest, or all, could not be read."""
    split_rows: Mapping[SplitName, int]
    unused_fields: tuple[str, ...] = ()
    """Fields of the records that nothing reads."""
    problems: tuple[RowProblem, ...]
    """Errors and warnings in the order of the source, and those of all rows together in the end."""
    error_count: int
    warning_count: int
    counts: Mapping[str, int]
    """How many problems there are of each code."""
    examples: Mapping[str, tuple[RowProblem, ...]]
    """Up to three problems of each code."""
    statistics: Statistics = field(default_factory=Statistics)
    duplicate_pairs: tuple[DuplicatePair, ...] = ()
    """Up to a hundred examples of each kinship."""
    difference: RowChanges | None = None
    untested_answers: int = 0
    """Distinct completions with rows to train on and no row in the test split, where they are labels."""
    unread_labels: int = 0
    """Rows whose label may judge the answer, learned all the same by an older rule."""

    @property
    def valid_rows(self) -> int:
        """Rows that could be used, before duplicates and leaked rows were left out."""
        return self.rows - self.invalid_rows

    @property
    def kept_rows(self) -> int:
        """Rows in all splits."""
        return sum(self.split_rows.values())
