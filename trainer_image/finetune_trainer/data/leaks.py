# SPDX-License-Identifier: Apache-2.0
"""Rows of a dataset that repeat held-out rows of another one, by the rule within a dataset."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_trainer.contract.dataset import Cleaning
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.duplicates import select
from finetune_trainer.data.index import SPLIT_NUMBERS, SPLITS, RowIndex
from finetune_trainer.data.output import read_rows as read_numbered
from finetune_trainer.rows import LEARNED_FROM, SPLIT_FILES, read_rows

HELD_OUT: Final[SplitName] = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """Rows that must not be learned from."""

    rows: Mapping[SplitName, tuple[int, ...]]
    """Their numbers in training and validation, from 1, in order."""
    near: int = 0
    """How many of them are only nearly the same as a held-out row."""
    unsearched: int = 0
    """Number of rows that were not searched for nearly equal ones, because all would take too much memory."""

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(map(len, self.rows.values()))


NO_LEAKS: Final = Leaks(rows=dict.fromkeys(LEARNED_FROM, ()))


def find_leaks(learned: Mapping[SplitName, Path], held_out: Path) -> Leaks:
    """Find learned rows with the input of a held-out row, or nearly that input and its answer.

    Memory grows by about a hundred bytes per row. Raises OSError.

    Args:
        learned: files of prepared rows, by split.
        held_out: file of prepared rows that must not be learned from.
    """
    index = RowIndex()
    files = {**{split: learned[split] for split in LEARNED_FROM}, HELD_OUT: held_out}
    for split in SPLITS:
        for number, row in enumerate(read_rows(files[split]), 1):
            index.add(row, split, 0, number)
    if not len(index):
        return NO_LEAKS
    splits = index.table["split"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, path in files.items():
            (folder / SPLIT_FILES[split]).symlink_to(path.resolve())
        selection = select(index, lambda wanted: read_numbered(folder, splits, wanted), Cleaning(), [])
    found: dict[SplitName, set[int]] = {split: set() for split in LEARNED_FROM}
    near = 0
    for kind, rows, of in selection.pairs:
        if kind not in ("Leak", "NearLeak"):
            continue
        for row, other in zip(rows.tolist(), of.tolist(), strict=True):
            if splits[other] == SPLIT_NUMBERS[HELD_OUT]:
                found[SPLITS[splits[row]]].add(int(index.table["record"][row]))
                near += kind == "NearLeak"
    search = selection.near_search
    return Leaks(
        rows={split: tuple(sorted(numbers)) for split, numbers in found.items()},
        near=near,
        unsearched=0 if search is None else search.of_rows - search.rows,
    )
