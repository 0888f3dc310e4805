"""What is done with every row by itself: batches of records become lines, digests and findings.

A batch needs no other one, so that several processes can work on the batches of a source.
"""

from dataclasses import dataclass, field

from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data import output
from finetune_trainer.data.checks.scanner import Scanner
from finetune_trainer.data.cleaning import clean
from finetune_trainer.data.index import RowIndex
from finetune_trainer.data.options import VISIBLE_TEXT_SINCE, Recipe
from finetune_trainer.data.reading import BatchReader, RowBatch
from finetune_trainer.data.rowproblems import InvalidRecord, Issue, RowPosition
from finetune_trainer.data.split import split_of
from finetune_trainer.rows import SPLIT_FILES


@dataclass(slots=True, kw_only=True)
class PreparedBatch:
    """What a batch became."""

    index: RowIndex
    """The valid rows, as `lines` has them."""
    bytes_read: int
    """Of all files on disk, when the batch was complete."""
    lines: dict[SplitName, bytearray] = field(
        default_factory=lambda: {name: bytearray() for name in SPLIT_FILES}
    )
    """Of the split files."""
    findings: list[tuple[RowPosition, tuple[Issue, ...]]] = field(default_factory=list)
    """All that is wrong, in the order of the records."""
    rows: int = 0
    """Records that were read, invalid ones among them."""
    invalid: int = 0
    broken: int = 0
    """Files of which the rest, or all, could not be read."""
    redacted: int = 0
    unread_labels: int = 0
    unused: tuple[str, ...] = ()
    """Fields that nothing reads."""
    known: frozenset[str] = frozenset()
    """Fields that are read."""


class Preparer:
    """Prepares batches by a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises ValueError for a template that is none."""
        self._recipe = recipe
        self._reader = BatchReader(recipe)
        self._scanner = Scanner(recipe.checks)
        self._compares_visible_text = recipe.division.rule_version >= VISIBLE_TEXT_SINCE

    def prepare(self, batch: RowBatch) -> PreparedBatch:
        """Read, divide, clean and look through the rows of a batch."""
        index = RowIndex(compares_visible_text=self._compares_visible_text)
        done = PreparedBatch(index=index, bytes_read=batch.bytes_read)
        for item in self._reader.read(batch):
            if isinstance(item, InvalidRecord):
                done.findings.append((item.position, item.issues))
                done.broken += item.ends_file
                done.invalid += not item.ends_file
                done.rows += not item.ends_file
                continue
            done.rows += 1
            # The division is by the raw row, so that no cleaning ever moves one.
            split = split_of(item.raw, self._recipe.division)
            cleaned = clean(item.raw.row, self._recipe.cleaning)
            row, issues = self._scanner.scan(cleaned)
            if issues:
                done.findings.append((item.position, issues))
                if any(issue.severity == "error" for issue in issues):
                    done.invalid += 1
                    continue
            done.redacted += row is not cleaned
            done.lines[split] += output.line_of(row)
            shown = self._scanner.masked(row.output) if issues else None
            index.add(row, split, batch.file, item.position.record or 0, shown=shown)
        done.unread_labels = self._reader.unread_labels
        if self._reader.form is not None:
            done.unused, done.known = tuple(self._reader.form.unused), self._reader.form.known
        return done
