"""Held-out rows in batches, of which one at a time is on the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]
"""Inputs of a model: tensors, and a few numbers."""


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

    def __iter__(self) -> Iterator[Batch]:
        for rows in self._batches:
            yield {
                name: value.to(self._device) if isinstance(value, Tensor) else value
                for name, value in self._collate(rows).items()
            }
