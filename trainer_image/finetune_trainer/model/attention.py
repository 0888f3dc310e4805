# SPDX-License-Identifier: Apache-2.0
"""Attention over packed rows at the cost of each row alone: FlashAttention with row bounds, from PyTorch.

transformers has the same kernels through the package `flash-attn`, which has no wheels at PyPI, or through
`kernels`, which downloads them when a model is loaded. PyTorch includes them (`torch.nn.attention.varlen`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.flash_attention import get_target_dtype
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from finetune_trainer.model.adapted_layers import unwrap_base_model

VARLEN: Final = "varlen"
"""Name of this attention in a model's configuration."""
REPLACED: Final = "sdpa"
"""The attention that it computes. Models that need another one, for example to cap scores, keep that."""


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each row of a packed sequence, as transformers' attention functions do.

    Args:
        module: the attention layer.
        query: of shape (1, heads, tokens, head size).
        key: of shape (1, key heads, tokens, head size); each serves several heads.
        value: as `key`.
        attention_mask: must be absent.
        dropout: must be 0.
        scaling: factor of the scores; None for the inverse square root of the head size.
        sliding_window: tokens that a token attends to, with itself; None for all before it.
        cu_seq_lens_q: bounds of the rows, 0 first, of shape (rows + 1,), int32.
        max_length_q: tokens of the longest row.
        settings: those of other attention functions; some change the result and must be absent.

    Returns:
        the output, of shape (1, tokens, heads, head size), and no weights.

    Raises ValueError for an input that the kernel does not support.
    """
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if settings.get(name) is not None]
    if unsupported or dropout or attention_mask is not None or settings.get("is_causal") is False:
        raise ValueError(
            f"varlen attention has no {', '.join(unsupported) or 'mask, dropout or full attention'}"
        )
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("varlen attention needs the bounds of the rows")
    dtype: Any = get_target_dtype(query, module)  # None keeps the dtype
    queries, keys, values = (
        (states if dtype is None else states.to(dtype))[0].transpose(0, 1) for states in (query, key, value)
    )
    # PyTorch prefers cuDNN on Hopper and Blackwell. It builds a graph for each pair of the number of rows and
    # the longest row, and almost every batch has another pair.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = varlen_attn(
            queries,
            keys,
            values,
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
    if not isinstance(output, Tensor):
        raise TypeError("varlen_attn returned more than its output")
    return output[None], None


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What distinguishes the attention of one layer from that of others."""

    heads: int
    key_heads: int
    head_size: int
    value_size: int
    scaling: float | None
    sliding_window: int | None


@contextmanager
def recorded_shapes() -> Iterator[set[AttentionShape]]:
    """The shapes of all calls of `VARLEN` in the block."""
    shapes: set[AttentionShape] = set()

    def record(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *mask: Any, **settings: Any
    ) -> Any:
        shapes.add(
            AttentionShape(
                query.shape[1],
                key.shape[1],
                query.shape[-1],
                value.shape[-1],
                settings.get("scaling"),
                settings.get("sliding_window"),
            )
        )
        return varlen_attention(module, query, key, value, *mask, **settings)

    AttentionInterface.register(VARLEN, record)
    try:
        yield shapes
    finally:
        AttentionInterface.register(VARLEN, varlen_attention)


PROBE_TOKENS: Final = (300, 200)
"""Lengths of two rows whose gradients are compared: kernels differ for short rows, and backward."""
MAX_GRADIENT_ERROR: Final = 0.05
"""Limit for the norm of the difference of gradients in bfloat16, relative to that of the gradients. Rounding
is far below it, a wrong mask far above."""


def check_gradients(shape: AttentionShape, device: torch.device) -> None:
    """Compare the gradients of two packed rows with those of each row alone by PyTorch's own attention.

    Raises RuntimeError if they differ, or as the kernel does.
    """
    generator = torch.Generator(device).manual_seed(0)
    tokens = sum(PROBE_TOKENS)
    sizes = (
        (shape.heads, shape.head_size),
        (shape.key_heads, shape.head_size),
        (shape.key_heads, shape.value_size),
    )
    query, key, value = states = [
        torch.randn(
            (1, heads, tokens, size), generator=generator, device=device, dtype=torch.bfloat16
        ).requires_grad_()
        for heads, size in sizes
    ]
    upstream = torch.randn(
        (1, tokens, shape.heads, shape.value_size), generator=generator, device=device, dtype=torch.bfloat16
    )
    bounds = torch.tensor((0, PROBE_TOKENS[0], tokens), dtype=torch.int32, device=device)
    packed, _ = varlen_attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        scaling=shape.scaling,
        sliding_window=shape.sliding_window,
        cu_seq_lens_q=bounds,
        max_length_q=max(PROBE_TOKENS),
    )
    rows = zip(*(torch.split(each, list(PROBE_TOKENS), 2) for each in states), strict=True)
    alone = torch.cat([_alone(shape, *row) for row in rows], 1)
    for actual, expected in zip(
        torch.autograd.grad(packed, states, upstream),
        torch.autograd.grad(alone, states, upstream),
        strict=True,
    ):
        error = (actual.float() - expected.float()).norm() / expected.float().norm()
        if not error <= MAX_GRADIENT_ERROR:
            raise RuntimeError(f"gradients of packed rows differ from those of rows alone by {error:.2g}")


def _alone(shape: AttentionShape, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one row, of shape (1, tokens, heads, value size)."""
    distance = torch.arange(query.shape[2], device=query.device)
    distance = distance[:, None] - distance
    window = query.shape[2] if shape.sliding_window is None else shape.sliding_window
    mask = (distance >= 0) & (distance < window)
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=shape.scaling, enable_gqa=True
    )
    return output.transpose(1, 2)


def get_attention(model: Any) -> str:
    """Name of the attention that `model` uses, an adapted one too."""
    name: str = unwrap_base_model(model).config._attn_implementation
    return name


def set_attention(model: Any, name: str) -> None:
    """Use another attention in all layers of `model`, for example `VARLEN`."""
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, flash_attention_mask)
    unwrap_base_model(model).set_attn_implementation(name)


@contextmanager
def disable_varlen(model: Any) -> Iterator[None]:
    """In the block, a model with `VARLEN` has `REPLACED`, which computes rows without bounds too."""
    if get_attention(model) != VARLEN:
        yield
        return
    set_attention(model, REPLACED)
    try:
        yield
    finally:
        set_attention(model, VARLEN)
