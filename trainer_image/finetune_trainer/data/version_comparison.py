# SPDX-License-Identifier: Apache-2.0
"""Comparison of the rows of two versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.result import RowChanges, SourceChanges
from finetune_trainer.data.row_index import RowIndex, answer_digest, input_digest
from finetune_trainer.rows import SPLIT_FILES, parse_row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Digests = NDArray[np.uint64]
    Numbers = NDArray[np.int64]
    Mask = NDArray[np.bool_]


ENTRY_BYTES: Final = 16
UNKNOWN: Final = -1
"""Number of the source of rows whose origin is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierVersion:
    """A version to compare with."""

    digest: str
    files: Mapping[SplitName, Path]
    sources: Sequence[tuple[str, Mapping[SplitName, int]]] = ()
    """Name of each source, and its rows in the file of each split, where they follow those of the sources
    before; empty if the origin of the rows is unknown."""


def compare(
    index: RowIndex, keep: "Mask", previous: EarlierVersion, sources: "Numbers", names: Sequence[str]
) -> RowChanges:
    """Compare the kept rows with an earlier version.

    Splits do not matter. Rows that differ but share an input count as changed, up to the smaller number in
    both. `sources` has the number of the source of each row of the index, `names` has their names. Sources
    with equal names count as one. Raises OSError.
    """
    import numpy as np

    entries, origins = bytearray(), []
    for split in SPLIT_FILES:
        begin = len(entries)
        with previous.files[split].open(encoding="utf-8", newline="\n") as lines:
            for row in map(parse_row, lines):
                entries += input_digest(row)[:8] + answer_digest(row)
        origins.append(_origins(previous, split, (len(entries) - begin) // ENTRY_BYTES))
    before = np.frombuffer(entries, dtype=np.uint64).reshape(-1, 2)
    old_inputs, old_rows = before[:, 0], _rows(before[:, 0], before[:, 1])
    new_inputs = index.table["input"][:, 0][keep]
    new_rows = _rows(new_inputs, index.table["answer"][keep])
    is_new, is_old = ~np.isin(new_rows, old_rows), ~np.isin(old_rows, new_rows)
    new, old = new_inputs[is_new], old_inputs[is_old]
    is_changed, is_replaced = _matched(new, old), _matched(old, new)
    new_sources, old_sources = sources[keep][is_new], np.concatenate(origins)[is_old]
    by_name: dict[str, list[int]] = {}
    if len(names) > 1 or len(previous.sources) > 1:
        old_names = [name for name, _ in previous.sources]
        for column, numbers, known in (
            (0, new_sources[~is_changed], names),
            (1, old_sources[~is_replaced], old_names),
            (2, new_sources[is_changed], names),
        ):
            for number, name in enumerate(known):
                by_name.setdefault(name, [0, 0, 0])[column] += int(np.count_nonzero(numbers == number))
    return RowChanges(
        previous=previous.digest,
        added=int(np.count_nonzero(~is_changed)),
        removed=int(np.count_nonzero(~is_replaced)),
        changed=int(np.count_nonzero(is_changed)),
        sources=tuple(
            SourceChanges(name=name, added=added, removed=removed, changed=changed)
            for name, (added, removed, changed) in by_name.items()
            if added or removed or changed
        ),
    )


def _origins(previous: EarlierVersion, split: SplitName, count: int) -> "Numbers":
    """The number of the source of each row of a split."""
    import numpy as np

    rows = [found.get(split, 0) for _, found in previous.sources]
    if sum(rows) != count:
        return np.full(count, UNKNOWN, dtype=np.int64)
    return np.repeat(np.arange(len(rows), dtype=np.int64), rows)


def _matched(inputs: "Digests", others: "Digests") -> "Mask":
    """Whether each row has a row among the others with its input, each of which matches one row only."""
    import numpy as np

    order = np.argsort(inputs, kind="stable")
    begins = np.searchsorted(inputs[order], inputs[order], side="left")
    number = np.empty(len(inputs), dtype=np.int64)
    number[order] = np.arange(len(inputs)) - begins
    in_order = np.sort(others)
    found = np.searchsorted(in_order, inputs, side="right") - np.searchsorted(in_order, inputs, side="left")
    matched: Mask = number < found
    return matched


def _rows(inputs: "Digests", answers: "Digests") -> "Digests":
    """One number per row. The probability of a collision among five million rows is 1 in 10^6."""
    import numpy as np

    # The odd factor makes the result depend on the order of the two operands.
    return inputs * np.uint64(0x9E3779B97F4A7C15) ^ answers
