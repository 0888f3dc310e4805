# SPDX-License-Identifier: Apache-2.0
"""Held-out rows in batches, of which one at a time is on the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from typing_extensions import override

Batch = dict[str, Any]
"""Inputs of a model: tensors, and a few numbers."""


class RowBatches(Sequence[list[Any]]):
    """The rows of batches, read when a batch is used."""

    def __init__(self, rows: Any, batches: Sequence[Sequence[Any]]) -> None:
        """`batches` has what `rows` are indexed with."""
        self._rows = rows
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def numbers(self) -> list[int]:
        """The indices of the rows, in the order of the batches."""
        places = (place for batch in self._batches for place in batch)
        return [place if isinstance(place, int) else place[0] for place in places]

    @overload
    def __getitem__(self, index: int) -> list[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> "RowBatches": ...

    @override
    def __getitem__(self, index: int | slice) -> "list[Any] | RowBatches":
        if isinstance(index, slice):
            return RowBatches(self._rows, self._batches[index])
        return [self._rows[row] for row in self._batches[index]]


class LazyBatches:
    """Batches that are collated and moved to the device when they are read."""

    def __init__(
        self, batches: Sequence[Sequence[Any]], collate: Callable[[Any], Batch], device: torch.device
    ) -> None:
        """`batches` has the rows of each batch."""
        self._batches = batches
        self._collate = collate
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def numbers(self) -> list[int]:
        """The indices of the rows, in the order of the batches."""
        return self._batches.numbers if isinstance(self._batches, RowBatches) else []

    def __iter__(self) -> Iterator[Batch]:
        for rows in self._batches:
            yield {
                name: value.to(self._device) if isinstance(value, Tensor) else value
                for name, value in self._collate(rows).items()
            }
