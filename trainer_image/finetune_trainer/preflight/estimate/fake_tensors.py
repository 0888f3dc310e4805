# SPDX-License-Identifier: Apache-2.0
"""Fake tensors: shapes and dtypes without content, on which real training code runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils
from typing_extensions import override

aten = torch.ops.aten


@contextmanager
def fake_tensors(*, masks: bool, on_gpu: bool = False) -> Iterator[None]:
    """In the block, new tensors are fake.

    Where code reads a number or a truth value from a tensor, it gets 1 or True: checks pass, and boolean
    indices keep everything. Parts whose sizes were read from a tensor are equal. Nothing can move or convert
    the weights of a module, which fake tensors do not support.

    Args:
        masks: whether attention reads a mask, as in a batch with rows of different lengths. Without one, as
            in kernels for rows of different lengths, its memory does not grow with the square of the length.
        on_gpu: whether dropout keeps a byte per number for the backward pass, as the kernel of a GPU does. On
            a CPU it keeps a number of its own dtype.
    """
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_Contents())  # type: ignore[no-untyped-call]
        stack.enter_context(replaced(torch.nn.Module, "to", lambda module, *_, **__: module))
        name = "_move_adapter_to_device_of_base_layer"
        stack.enter_context(replaced(BaseTunerLayer, name, lambda *_, **__: None))
        stack.enter_context(replaced(torch, "split", _split))
        if on_gpu:
            stack.enter_context(replaced(torch.nn.functional, "dropout", dropout_of_a_gpu))
        if not masks:
            # transformers omits a mask that keeps everything, unless the tensors have no content.
            stack.enter_context(replaced(masking_utils, "is_tracing", lambda *_: False))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """In the block, the attribute has another value."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _all_rows(tensor: Tensor) -> Tensor:
    """What `tensor.nonzero()` returns if no element is zero."""
    return torch.empty((tensor.numel(), tensor.dim()), dtype=torch.long)


def _all_elements(tensor: Tensor, *_: Any) -> Tensor:
    return tensor.new_empty((tensor.numel(),))


def dropout_of_a_gpu(tensor: Tensor, p: float = 0.5, training: bool = True, *_: Any, **__: Any) -> Tensor:
    """`torch.nn.functional.dropout` as a GPU computes it."""
    if not training or p == 0:
        return tensor
    dropped: Tensor = torch.native_dropout(tensor, p, train=True)[0]
    return dropped


def _split(tensor: Tensor, sizes: int | list[int], dim: int = 0) -> Any:
    """Split into equal parts if the sizes do not add up."""
    if isinstance(sizes, int) or sum(sizes) == tensor.shape[dim]:
        return tensor.split(sizes, dim)  # type: ignore[no-untyped-call]
    return torch.tensor_split(tensor, len(sizes), dim)


def _index(tensor: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Index with each boolean mask replaced by the indices of all its elements."""
    expanded: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            expanded.extend(_all_rows(index).unbind(1))
        else:
            expanded.append(index)
    indexed: Tensor = aten.index.Tensor(tensor, expanded)
    return indexed


def _scatter_add(tensor: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Add in place in the backward pass, where PyTorch does so unless a dispatch mode is active."""
    return (
        tensor.scatter_add_(dim, index, source) if in_backward() else tensor.scatter_add(dim, index, source)
    )


def in_backward() -> bool:
    """Whether autograd computes gradients, which includes recomputing a layer for them."""
    return bool(torch._C._current_graph_task_id() != -1)


def _number(tensor: Tensor) -> bool | int:
    return True if tensor.dtype == torch.bool else 1


CONTENTS: Final[Mapping[Any, Callable[..., Any]]] = {
    aten._local_scalar_dense.default: _number,
    aten.item.default: _number,  # in inference mode
    aten.is_nonzero.default: lambda *_: True,  # in inference mode
    aten.allclose.default: lambda *_, **__: True,
    aten.equal.default: lambda *_: True,
    aten.nonzero.default: _all_rows,
    aten.masked_select.default: _all_elements,
    aten.index.Tensor: _index,
    aten.scatter_add.default: _scatter_add,
}
"""Operations whose result depends on the content of tensors, or on the presence of a dispatch mode."""


class _Contents(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return CONTENTS.get(func, func)(*args, **(kwargs or {}))
