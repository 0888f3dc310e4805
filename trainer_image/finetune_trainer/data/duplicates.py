"""Which rows are kept, of those that say the same again, that leak into a held-out split, or that contradict.

In this order, each of the rows that are left:

- A row leaks where a split that is held out more has its input: a training row where validation or test has
  it, a validation row where test has it. It is left out. A division by the hash of the input gives no such
  rows, but one by groups or by the team may, and cleaning makes inputs equal that were not.
- A duplicate has the same input and answer as an earlier row of its split. It is left out.
- A row leaks nearly where its input is nearly that of a row of a split that is held out more, and the answer
  is the same: there it would be known by heart. It is left out, unless looking for near duplicates is off.
- A near duplicate is near to an earlier row of its split, with the same answer. It is kept or left out as the
  recipe says.
- A row conflicts where an earlier row has the same input and another answer. It is kept. A preference does
  where an earlier one prefers the other of the same two answers, a row of KTO where an earlier one judges the
  same answer otherwise.

By rule version 2 inputs are equal across splits where a reader sees no difference between them: in another
Unicode form, with invisible characters, with other blanks. For nearness answers are equal in that way too, in
small letters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from finetune_trainer.contract.dataset import Cleaning
from finetune_trainer.data.index import RowIndex, groups
from finetune_trainer.data.result import DuplicateKind, DuplicatePair
from finetune_trainer.data.rowproblems import RowPosition
from finetune_trainer.data.similarity import Rows, find_near

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Numbers = NDArray[np.int64]

MAX_EXAMPLES_PER_KIND: Final = 100
"""Of each kind, in reports."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """The rows that are kept, by a mask over the index, and counts of those that are alike."""

    keep: "Mask"
    duplicates: int
    leaked: int
    near_leaked: int
    conflicting: int
    near_duplicates: int | None
    """None: not looked for."""
    skipped: int
    """Rows that are too many to look for near duplicates; 0 where that was done, or is not asked for."""
    index: RowIndex
    files: Sequence[str | None]
    """Names for places."""
    pairs: "tuple[tuple[DuplicateKind, Numbers, Numbers], ...]"
    """Of each kind the rows, and for each of them the one that it is alike to."""

    @property
    def example_pairs(self) -> tuple[DuplicatePair, ...]:
        """Examples."""
        return tuple(
            pair for part in self.pairs for pair in islice(self._pairs_of(*part), MAX_EXAMPLES_PER_KIND)
        )

    def all_pairs(self) -> Iterator[DuplicatePair]:
        """Every pair of rows that are alike."""
        for part in self.pairs:
            yield from self._pairs_of(*part)

    def _pairs_of(self, kind: DuplicateKind, rows: "Numbers", of: "Numbers") -> Iterator[DuplicatePair]:
        for row, other in zip(rows, of, strict=True):
            yield DuplicatePair(kind, self._place(int(row)), self._place(int(other)))

    def _place(self, row: int) -> RowPosition:
        table = self.index.table
        return RowPosition(self.files[table["file"][row]], int(table["record"][row]))


def select(index: RowIndex, rows: Rows, cleaning: Cleaning, files: Sequence[str | None]) -> Selection:
    """Decide about every row; `rows` reads them again, and `files` are names for places.

    Raises OSError, and what `rows` raises.
    """
    import numpy as np

    table = index.table
    split = table["split"]
    numbers = np.arange(len(table), dtype=np.int32)
    inputs = groups(table["input"][:, 0], table["input"][:, 1])
    visible = groups(table["visible_input"]) if index.compares_visible_text else inputs

    held_out = _highest(visible, split)
    leaks = split < held_out
    keep = ~leaks
    pairs = [_pairs("Leak", leaks, _firsts(visible, split == held_out))]

    first = _firsts(groups(table["answer"], inputs), keep)
    duplicates = keep & (first != numbers)
    keep &= ~duplicates
    pairs.append(_pairs("Exact", duplicates, first))

    option = cleaning.near_duplicates
    answers = groups(table["visible_answer" if index.compares_visible_text else "answer"])
    order = _order(split, keep, answers)
    # By the first rule all rows count.
    compared = len(order) if index.compares_visible_text else len(table)
    is_over = option != "Off" and compared > cleaning.max_rows_for_near_duplicates
    to = np.full(len(table), -1, dtype=np.int64)
    if option != "Off" and not is_over:
        to = find_near(rows, order, answers, compares_short_texts=index.compares_visible_text)
    near_leaks = (to >= 0) & (split[to] > split)
    near_duplicates = (to >= 0) & ~near_leaks
    keep &= ~near_leaks
    if option == "Remove":
        keep &= ~near_duplicates
    pairs += [_pairs("NearLeak", near_leaks, to), _pairs("Near", near_duplicates, to)]

    subjects = groups(table["subject"], inputs)
    first = _firsts(subjects, keep)
    conflicts = keep & (first != numbers)
    pairs.append(_pairs("Conflict", conflicts, first))

    return Selection(
        keep=keep,
        duplicates=int(np.count_nonzero(duplicates)),
        leaked=int(np.count_nonzero(leaks)),
        near_leaked=int(np.count_nonzero(near_leaks)),
        conflicting=int(np.count_nonzero(conflicts)),
        near_duplicates=None if option == "Off" or is_over else int(np.count_nonzero(near_duplicates)),
        skipped=compared if is_over else 0,
        index=index,
        files=files,
        pairs=tuple(pairs),
    )


def _order(split: "NDArray[np.uint8]", keep: "Mask", answers: "NDArray[np.int32]") -> "Numbers":
    """The rows that may be near to another one; what is held out more comes first, so that others are near to
    it."""
    import numpy as np

    order = np.argsort(-split.astype(np.int8), kind="stable")
    order = order[keep[order]]
    # Most answers are given once.
    rows: Numbers = order[np.bincount(answers[order], minlength=1)[answers[order]] > 1]
    return rows


def _highest(group: "NDArray[np.int32]", split: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """For each row the highest split of its group."""
    import numpy as np

    highest = np.zeros(len(group), dtype=np.uint8)
    np.maximum.at(highest, group, split)
    return highest[group]


def _firsts(group: "NDArray[np.int32]", among: "Mask") -> "NDArray[np.int32]":
    """For each row the first one of its group among some, if there is one."""
    import numpy as np

    rows = np.flatnonzero(among).astype(np.int32)
    first = np.full(len(group), len(group), dtype=np.int32)
    np.minimum.at(first, group[rows], rows)
    return first[group]


def _pairs(
    kind: DuplicateKind, rows: "Mask", of: "NDArray[np.int32] | Numbers"
) -> "tuple[DuplicateKind, Numbers, Numbers]":
    import numpy as np

    found: Numbers = np.flatnonzero(rows)
    return kind, found, of[found].astype(np.int64)
