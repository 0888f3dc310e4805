# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes of live tensors and the floating-point operations of a block."""

import weakref
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

aten = torch.ops.aten

START: Final = ("start", 0)
ATTENTION: Final = frozenset(
    operation
    for operation in flop_registry
    if "scaled_dot_product" in str(operation) or "flash_attention" in str(operation)
)
"""Operations whose cost grows with the square of the length."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live storages and their peak in each phase of a block, like an allocator without overhead.

    A storage counts from the first operation that returns it until it is freed. Works with real and with
    fake tensors.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        """Bytes of all live storages."""
        self.peaks: dict[tuple[str, int], int] = defaultdict(int)
        """Peak of `live` in each phase, in bytes."""
        self.matmul_flops = 0
        """Floating-point operations of matrix products, except in attention."""
        self.attention_flops = 0
        """Those of the two products of attention. A causal mask does not halve them."""
        self._phase = START
        self._storages: dict[int, int] = {}

    def begin(self, phase: tuple[str, int]) -> None:
        """Count the following operations in this phase."""
        self._phase = phase
        self._record()

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor that existed before the block."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        self._storages[key] = size = storage.nbytes()
        self.live += size
        self._record()
        weakref.finalize(storage, self._remove, key)

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            flops = count(*args, **(kwargs or {}), out_val=result)
            if func._overloadpacket in ATTENTION:
                self.attention_flops += flops
            else:
                self.matmul_flops += flops
        return result

    def _remove(self, key: int) -> None:
        self.live -= self._storages.pop(key, 0)

    def _record(self) -> None:
        self.peaks[self._phase] = max(self.peaks[self._phase], self.live)
