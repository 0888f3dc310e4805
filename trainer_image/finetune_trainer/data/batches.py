# SPDX-License-Identifier: Apache-2.0
"""Turns batches of records into lines, digests and findings, each row by itself.

A batch does not depend on other batches, so several processes can work on the batches of a source.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from finetune_trainer import canonical
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data import output
from finetune_trainer.data.checks.scanner import Scanner
from finetune_trainer.data.cleaning import clean
from finetune_trainer.data.index import RowIndex, completion_of
from finetune_trainer.data.options import Recipe
from finetune_trainer.data.reading import BatchReader, RowBatch
from finetune_trainer.data.rowproblems import InvalidRecord, Issue, RowPosition
from finetune_trainer.data.split import split_of
from finetune_trainer.rows import SPLIT_FILES, Message


@dataclass(slots=True, kw_only=True)
class PreparedBatch:
    """Result of preparing one batch."""

    index: RowIndex
    """The valid rows, in the order of `lines`."""
    source: int
    """Number of the source, from 0."""
    bytes_read: int
    """Bytes read from all files on disk when the batch was complete."""
    lines: dict[SplitName, bytearray] = field(
        default_factory=lambda: {name: bytearray() for name in SPLIT_FILES}
    )
    """Lines per split file."""
    findings: list[tuple[RowPosition, tuple[Issue, ...]]] = field(default_factory=list)
    """All issues, in the order of the records."""
    rows: int = 0
    """Number of records read, including invalid ones."""
    invalid: int = 0
    broken: int = 0
    """Number of files that could not be read to their end."""
    redacted: int = 0
    sensitive: set[str] = field(default_factory=set)
    """Secrets and personal data that training rows keep. They never leave memory."""
    combined: int = 0
    """Number of answers that combine several labels."""
    kept_columns: set[str] = field(default_factory=set)
    """Columns of which a value was kept."""
    unused: tuple[str, ...] = ()
    """Fields of the records that are not used."""
    known: frozenset[str] = frozenset()
    """Fields of the records that are used."""


class Preparer:
    """Prepares batches as the recipe of their source specifies."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        """Raises ValueError for an invalid template."""
        # Sources differ only in how their records are read.
        self._recipe = recipes[0]
        self._readers = [BatchReader(recipe) for recipe in recipes]
        self._scanner = Scanner(self._recipe.checks)

    def prepare(self, batch: RowBatch) -> PreparedBatch:
        """Read, split, clean and scan the rows of a batch."""
        index = RowIndex()
        done = PreparedBatch(index=index, source=batch.source, bytes_read=batch.bytes_read)
        reader = self._readers[batch.source]
        for item in reader.read(batch):
            if isinstance(item, InvalidRecord):
                done.findings.append((item.position, item.issues))
                done.broken += item.ends_file
                done.invalid += not item.ends_file
                done.rows += not item.ends_file
                continue
            done.rows += 1
            # The split depends on the raw row, so cleaning never moves a row.
            split = split_of(item.raw, self._recipe.division)
            cleaned = clean(item.raw.row, self._recipe.cleaning)
            row, issues = self._scanner.scan(cleaned)
            if issues:
                done.findings.append((item.position, issues))
                if any(issue.severity == "error" for issue in issues):
                    done.invalid += 1
                    continue
            done.redacted += row is not cleaned
            done.kept_columns.update(name for name, _ in row.columns)
            if issues and split == "train":
                done.sensitive |= self._scanner.values_of(row)
            done.lines[split] += output.line_of(row)
            shown = completion_of(self._masked(row.messages[-1])) if issues else None
            index.add(row, split, batch.file, item.position.record or 0, shown=shown, group=item.raw.group)
        if reader.form is not None:
            done.combined = reader.form.combined
            done.unused, done.known = tuple(reader.form.unused), reader.form.known
        return done

    def _masked(self, turn: Message) -> Message:
        """The turn with placeholders for all findings."""
        calls = turn.tool_calls
        if calls is not None:
            # The texts in the JSON, in which characters can be escaped, are masked one by one.
            calls = canonical.text(self._scanner.masked_json(json.loads(calls)))
        return replace(turn, content=self._scanner.masked(turn.content), tool_calls=calls)
