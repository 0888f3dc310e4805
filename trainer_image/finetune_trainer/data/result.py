# SPDX-License-Identifier: Apache-2.0
"""Result of a preparation, as plain data for the cluster's records, for the report and for evaluations.

With the salted hashes, an evaluation finds secrets and personal data of training rows in answers of a model.
The texts themselves are never stored. Like the rows next to it, the file of the hashes must stay private:
with it, guesses can be tested, and all numbers of a short form tried.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

from finetune_trainer import canonical_json
from finetune_trainer.contract.dataset import Checks
from finetune_trainer.contract.vocabulary import DataFormat, SplitName
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_problems import (
    Issue,
    RowPosition,
)

DuplicateKind = Literal["Exact", "Near", "Conflict", "Leak", "GroupLeak", "NearLeak"]
"""Relation of two rows: equal; nearly equal input; equal input with a different answer; equal input, the same
group, or nearly equal input in a training and a held-out row."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One issue with its position."""

    position: RowPosition
    issue: Issue


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two similar rows: the removed or reported row at `position`, and the `other` row."""

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
    """Lengths of the kept rows in characters."""

    mean: float = 0.0
    median: float = 0.0
    p95: float = 0.0
    max: int = 0
    histogram: tuple[Bucket, ...] = ()
    """About twenty buckets of increasing width."""


@dataclass(frozen=True, slots=True)
class Label:
    """One of few distinct completions, and its number of rows per split."""

    completion: str
    rows: Mapping[SplitName, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class NearSearch:
    """How many rows were compared to find near duplicates."""

    rows: int
    """Number of rows that were compared."""
    of_rows: int
    """Number of rows that could have a near duplicate: those whose answer occurs more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Statistics of the rows."""

    duplicate_rows: int = 0
    near_duplicate_rows: int | None = 0
    """None: not searched, because the search is off."""
    near_search: NearSearch | None = None
    """None: not searched."""
    leaked_rows: int = 0
    conflicting_rows: int = 0
    redacted_rows: int = 0
    prompt_characters: CharacterLengths = CharacterLengths()
    completion_characters: CharacterLengths = CharacterLengths()
    distinct_completions: int = 0
    labels: tuple[Label, ...] = ()
    """Labels by descending frequency; empty if there are more than 50 distinct completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChanges:
    """Numbers of rows of one source that differ; a changed row counts for the source that it has now."""

    name: str
    added: int
    removed: int
    changed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChanges:
    """Numbers of rows that differ from another version; a changed row has the same input, another answer."""

    previous: str
    """Digest of the other version."""
    added: int
    removed: int
    changed: int
    sources: tuple[SourceChanges, ...] = ()
    """Per source with a difference, if one of the two versions has several sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file that was read."""

    name: str
    bytes: int
    sha256: str
    source: str | None = None
    """Name of its source, if there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSummary:
    """What was read from one source, and what became of it."""

    name: str | None
    recipe: Recipe
    format: DataFormat | None
    """None if it was not detected."""
    rows: int
    """Number of records in its files."""
    invalid_rows: int
    leaked_rows: int
    """Rows that were removed from training because a held-out row is the same or nearly the same."""
    split_rows: Mapping[SplitName, int]
    """Kept rows. In the file of each split they follow those of the sources before."""


SENSITIVE_VALUES: Final = "sensitive-values"
"""Name of the folder among those derived from a dataset."""
SENSITIVE_FILE: Final = "sensitive.json"
HASHES_FORMAT: Final = 1
SALT_BYTES: Final = 16
MAX_HASHES: Final = 200_000
"""Max number of stored hashes; more values are not compared."""


@dataclass(frozen=True, slots=True)
class SensitiveHashes:
    """Hashes of the sensitive values of a dataset, and how they were found."""

    salt: str
    """In hexadecimal."""
    checks: Checks
    hashes: frozenset[str]
    """SHA-256 of salt and value, in hexadecimal."""
    complete: bool = True
    """False if there are more values than hashes."""

    def to_bytes(self) -> bytes:
        """The content of the file."""
        content = {
            "format": HASHES_FORMAT,
            "salt": self.salt,
            "checks": asdict(self.checks),
            "hashes": sorted(self.hashes),
        }
        return canonical_json.encode(content if self.complete else {**content, "complete": False})

    @classmethod
    def from_bytes(cls, content: bytes) -> "SensitiveHashes":
        """Read a file. Raises ValueError, KeyError, TypeError if it is damaged or has a newer format."""
        value = json.loads(content)
        if value["format"] != HASHES_FORMAT:
            raise ValueError(f"format {value['format']}, not {HASHES_FORMAT}")
        return cls(
            value["salt"], Checks(**value["checks"]), frozenset(value["hashes"]), value.get("complete", True)
        )

    def hash_of(self, value: str) -> str:
        """The salted hash of a value."""
        return _hash(self.salt, value)


@dataclass
class HashedValues:
    """Collects the hashes of a dataset's sensitive values, with a new salt."""

    salt: str = field(default_factory=lambda: secrets.token_hex(SALT_BYTES))
    hashes: set[str] = field(default_factory=set)
    complete: bool = True
    """False if a value was left out."""

    def add(self, values: Iterable[str]) -> None:
        """Add values, up to `MAX_HASHES` different ones."""
        for value in values:
            hashed = _hash(self.salt, value)
            if len(self.hashes) < MAX_HASHES:
                self.hashes.add(hashed)
            elif hashed not in self.hashes:
                self.complete = False
                return

    def found(self, checks: Checks) -> SensitiveHashes:
        """The hashes of values that were found by these checks."""
        return SensitiveHashes(self.salt, checks, frozenset(self.hashes), self.complete)


def _hash(salt: str, value: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + value.encode(errors="backslashreplace")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Result of a preparation. It has the first problems only, but counts all of them."""

    recipe: Recipe
    """That of the first source, of which all but `format`, `names` and `splits` holds for all sources."""
    format: DataFormat | None
    """None if it was not detected, or if the sources have several."""
    files: tuple[FileRecord, ...]
    rows: int
    """Number of records in the files."""
    invalid_rows: int
    broken_files: int
    """Number of files that could not be read to their end."""
    forms_differ: bool = False
    """Whether rows of one source cannot be trained on together with those of another one."""
    sources: tuple[SourceSummary, ...] = ()
    split_rows: Mapping[SplitName, int]
    unused_fields: tuple[str, ...] = ()
    """Fields of the records that are not used."""
    problems: tuple[RowProblem, ...]
    """Errors and warnings in the order of the source, then those of all rows together."""
    error_count: int
    warning_count: int
    counts: Mapping[str, int]
    """Number of problems per code."""
    examples: Mapping[str, tuple[RowProblem, ...]]
    """Up to three problems per code."""
    statistics: Statistics = field(default_factory=Statistics)
    duplicate_pairs: tuple[DuplicatePair, ...] = ()
    """Up to a hundred examples per kind."""
    difference: RowChanges | None = None
    unread_fields: tuple[str, ...] = ()
    """Unused fields that have a meaning for training by their names."""
    untested_answers: int = 0
    """Number of labels with training rows but no test row."""
    sensitive: SensitiveHashes = field(default_factory=lambda: HashedValues().found(Checks()))
    """Hashes of the secrets and personal data that training rows keep."""

    @property
    def valid_rows(self) -> int:
        """Number of usable rows, before duplicates and leaked rows are removed."""
        return self.rows - self.invalid_rows

    @property
    def kept_rows(self) -> int:
        """Number of rows in all splits."""
        return sum(self.split_rows.values())
