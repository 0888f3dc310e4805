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
- A row conflicts where an earlier row has the same input and another answer. It is kept. Preferences and KTO
  have such rows by design; there they do not count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, SupportsInt

from finetune_trainer.data.index import RowIndex, groups
from finetune_trainer.data.options import NearDuplicates as NearDuplicatesOption
from finetune_trainer.data.problems import Place
from finetune_trainer.data.result import Kin, Kinship
from finetune_trainer.data.similarity import NearDuplicates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Numbers = NDArray[np.int64]

EXAMPLES: Final = 5
"""Of each kinship."""


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
    kin: tuple[Kin, ...]


def select(
    index: RowIndex,
    near: NearDuplicates | None,
    option: NearDuplicatesOption,
    files: Sequence[str | None],
) -> Selection:
    """Decide about every row. `near` is None where the option is Off; `files` are names for places."""
    import numpy as np

    table = index.table
    split = table["split"]
    rows = np.arange(len(table), dtype=np.int32)
    inputs = groups(table["input"][:, 0], table["input"][:, 1])

    held_out = _highest(inputs, split)
    leaks = split < held_out
    keep = ~leaks
    kin = _examples(
        "Leak",
        leaks,
        lambda row: int(np.flatnonzero((inputs == inputs[row]) & (split == held_out[row]))[0]),
    )

    first = _firsts(groups(table["answer"], inputs), keep)
    duplicates = keep & (first != rows)
    keep &= ~duplicates
    kin += _examples("Exact", duplicates, first.__getitem__)

    to = _near(index, near, keep)
    near_leaks = (to >= 0) & (split[to] > split)
    near_duplicates = (to >= 0) & ~near_leaks
    keep &= ~near_leaks
    if option == "Remove":
        keep &= ~near_duplicates
    kin += _examples("NearLeak", near_leaks, to.__getitem__)
    kin += _examples("Near", near_duplicates, to.__getitem__)

    first = _firsts(inputs, keep)
    conflicts = keep & (first != rows)
    if index.allows_answers:
        conflicts[:] = False
    kin += _examples("Conflict", conflicts, first.__getitem__)

    def place(row: int) -> Place:
        return Place(files[table["file"][row]], int(table["record"][row]))

    return Selection(
        keep=keep,
        duplicates=int(np.count_nonzero(duplicates)),
        leaked=int(np.count_nonzero(leaks)),
        near_leaked=int(np.count_nonzero(near_leaks)),
        conflicting=int(np.count_nonzero(conflicts)),
        near_duplicates=(None if near is None or near.gave_up else int(np.count_nonzero(near_duplicates))),
        kin=tuple(Kin(kinship, place(row), place(of)) for kinship, row, of in kin),
    )


def _near(index: RowIndex, near: NearDuplicates | None, keep: "Mask") -> "Numbers":
    """For each row the one that it is near to, or -1."""
    import numpy as np

    if near is None or near.gave_up:
        return np.full(len(keep), -1, dtype=np.int64)
    # What is held out more comes first, so that rows of other splits are near to it.
    order = np.argsort(-index.table["split"].astype(np.int8), kind="stable")
    return near.find(order[keep[order]], groups(index.table["answer"]))


def _highest(group: "NDArray[np.int32]", split: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """For each row the highest split of its group."""
    import numpy as np

    highest = np.zeros(len(group), dtype=np.uint8)
    np.maximum.at(highest, group, split)
    return highest[group]


def _firsts(group: "NDArray[np.int32]", keep: "Mask") -> "NDArray[np.int32]":
    """For each row the first one of its group that is kept, if there is one."""
    import numpy as np

    rows = np.flatnonzero(keep).astype(np.int32)
    first = np.full(len(group), len(group), dtype=np.int32)
    np.minimum.at(first, group[rows], rows)
    return first[group]


def _examples(
    kinship: Kinship, rows: "Mask", of: Callable[[int], SupportsInt]
) -> list[tuple[Kinship, int, int]]:
    import numpy as np

    return [(kinship, int(row), int(of(row))) for row in np.flatnonzero(rows)[:EXAMPLES]]
