# SPDX-License-Identifier: Apache-2.0
"""Selection of the rows to keep: removes leaked and duplicate rows, and finds conflicts.

The rules apply in this order, each to the remaining rows:

- Leaked row: its input also occurs in a split that is held out more (of a training row in validation or test,
  of a validation row in test). It is removed. Splits by the hash of the input have no leaked rows. Splits by
  group or by the team and sources that are only trained on can have them, and cleaning can make different
  inputs equal.
- Leaked group: with split.groupBy, a row of a source that is only trained on is in the group of a held-out
  row. It is removed.
- Duplicate: an earlier row of the same split has the same input and answer. It is removed.
- Nearly leaked row: its input is near to that of a row in a split that is held out more, with the same
  answer, so evaluation would reward memorization. It is removed, unless near duplicates are off.
- Near duplicate: an earlier row of the same split has a near input and the same answer. The recipe says
  whether it is removed.
- Conflict: an earlier row has the same input and a different answer. The row is kept. Preferences conflict if
  they order the same two answers differently, and KTO rows if they label the same answer differently.

Inputs are compared across splits as a reader sees them, regardless of case, punctuation at
the ends of words, Unicode form, invisible characters and whitespace. Near duplicates compare answers
regardless of case, Unicode form, invisible characters and whitespace.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from finetune_trainer.contract.dataset import Cleaning
from finetune_trainer.data.index import RowIndex, groups
from finetune_trainer.data.result import DuplicateKind, DuplicatePair, NearSearch
from finetune_trainer.data.rowproblems import RowPosition
from finetune_trainer.data.similarity import Rows, affordable, find_near

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Numbers = NDArray[np.int64]

MAX_EXAMPLES_PER_KIND: Final = 100
"""Number of example pairs per kind in reports."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Mask of the rows to keep, and the pairs of similar rows with their counts."""

    keep: "Mask"
    duplicates: int
    leaked: int
    near_leaked: int
    conflicting: int
    near_duplicates: int | None
    """None: not searched."""
    near_search: NearSearch | None
    """None: not searched."""
    leaks: "Mask"
    """The rows that were removed because of a held-out row."""
    index: RowIndex
    files: Sequence[RowPosition]
    """Positions of the files."""
    pairs: "tuple[tuple[DuplicateKind, Numbers, Numbers], ...]"
    """Per kind: the rows, and for each of them the row that it repeats or contradicts."""

    @property
    def example_pairs(self) -> tuple[DuplicatePair, ...]:
        """The first pairs of each kind."""
        return tuple(
            pair for part in self.pairs for pair in islice(self._pairs_of(*part), MAX_EXAMPLES_PER_KIND)
        )

    def all_pairs(self) -> Iterator[DuplicatePair]:
        """All pairs."""
        for part in self.pairs:
            yield from self._pairs_of(*part)

    def _pairs_of(self, kind: DuplicateKind, rows: "Numbers", of: "Numbers") -> Iterator[DuplicatePair]:
        for row, other in zip(rows, of, strict=True):
            yield DuplicatePair(kind, self._position(int(row)), self._position(int(other)))

    def _position(self, row: int) -> RowPosition:
        table = self.index.table
        position = self.files[int(table["file"][row])]
        return replace(position, record=int(table["record"][row]))


def select(index: RowIndex, rows: Rows, cleaning: Cleaning, files: Sequence[RowPosition]) -> Selection:
    """Decide which rows to keep. `rows` reads them again; `files` are the positions of the files.

    Raises OSError, and what `rows` raises.
    """
    import numpy as np

    table = index.table
    split = table["split"]
    numbers = np.arange(len(table), dtype=np.int32)
    inputs = groups(table["input"][:, 0], table["input"][:, 1])
    visible = groups(table["visible_input"])

    held_out = _highest(visible, split)
    leaks = split < held_out
    pairs = [_pairs("Leak", leaks, _firsts(visible, split == held_out))]
    if table["group"].any():
        by_group = groups(table["group"])
        held_out = _highest(by_group, split)
        of_group = (split < held_out) & (table["group"] != 0) & ~leaks
        pairs.append(_pairs("GroupLeak", of_group, _firsts(by_group, split == held_out)))
        leaks |= of_group
    keep = ~leaks

    first = _firsts(groups(table["answer"], inputs), keep)
    duplicates = keep & (first != numbers)
    keep &= ~duplicates
    pairs.append(_pairs("Exact", duplicates, first))

    option = cleaning.near_duplicates
    answers = groups(table["visible_answer"])
    order = _order(split, keep, answers)
    to = np.full(len(table), -1, dtype=np.int64)
    search: NearSearch | None = None
    if option != "Off":
        compared = affordable(order, answers, split > 0)
        search = NearSearch(rows=len(compared), of_rows=len(order))
        to = find_near(rows, compared, answers)
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
        near_duplicates=None if option == "Off" else int(np.count_nonzero(near_duplicates)),
        near_search=search,
        leaks=leaks | near_leaks,
        index=index,
        files=files,
        pairs=tuple(pairs),
    )


def _order(split: "NDArray[np.uint8]", keep: "Mask", answers: "NDArray[np.int32]") -> "Numbers":
    """The rows that can have a near duplicate, from test to train: later rows are near to earlier ones."""
    import numpy as np

    order = np.argsort(-split.astype(np.int8), kind="stable")
    order = order[keep[order]]
    # A row whose answer occurs only once has no near duplicate.
    rows: Numbers = order[np.bincount(answers[order], minlength=1)[answers[order]] > 1]
    return rows


def _highest(group: "NDArray[np.int32]", split: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """The highest split number of each row's group."""
    import numpy as np

    highest = np.zeros(len(group), dtype=np.uint8)
    np.maximum.at(highest, group, split)
    return highest[group]


def _firsts(group: "NDArray[np.int32]", among: "Mask") -> "NDArray[np.int32]":
    """The first row of each row's group within `among`; the number of rows if there is none."""
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
