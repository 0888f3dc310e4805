# SPDX-License-Identifier: Apache-2.0
"""Train on a CPU as on a GPU: mixed precision, or the whole path that a GPU takes.

On a GPU the Trainer has `bf16=True`. Then accelerate runs the forward pass under autocast and converts its
outputs to float32. The variable below has the same effect if that argument is false.

The whole path has the parts that the trainer chooses for a GPU only, in addition: rows packed by varlen
attention, and the tiled loss. It shows which arguments and dtypes meet, and not what a device computes.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from finetune_trainer.evaluate import measured_model
from finetune_trainer.model import attention, completion_loss, loading, probe
from finetune_trainer.preflight.estimate.fake_tensors import dropout_of_a_gpu
from finetune_trainer.tokens.batching import TokenBudget
from finetune_trainer.train import collation, factory, model_setup
from finetune_trainer.train.model_setup import Trainable
from finetune_trainer.train.parallel import shards
from tools.models import tiny

VARIABLE: Final = "ACCELERATE_MIXED_PRECISION"
TILE_TOKENS: Final = 100
"""So that the vocabulary of the tiny model has several tiles."""
KERNEL_DTYPES: Final = (torch.bfloat16, torch.float16)


@contextmanager
def as_a_gpu_trains() -> Iterator[None]:
    """Load, train and evaluate everything in the block in the precision of a GPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        _mix_precision(patch)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def on_the_path_of_a_gpu(*, has_kernel: bool = True) -> Iterator[None]:
    """As `as_a_gpu_trains`, and with the attention and the loss of a GPU.

    A run with a token budget fails if its rows are not packed by varlen attention; without a kernel for that,
    it fails if they are not padded.
    """
    with as_a_gpu_trains(), pytest.MonkeyPatch.context() as patch:
        _use_kernels(patch, has_kernel=has_kernel)
        yield


def take_the_path_of_a_gpu() -> None:
    """`on_the_path_of_a_gpu` for a whole process: the `arm` of `processes.start`."""
    patch = pytest.MonkeyPatch()
    _mix_precision(patch)
    _use_kernels(patch, has_kernel=True)


def _mix_precision(patch: pytest.MonkeyPatch) -> None:
    patch.setenv(VARIABLE, "bf16")
    patch.setattr(torch.nn.functional, "dropout", dropout_of_a_gpu)
    patch.setattr(loading, "multiplies_bfloat16", lambda _: True)
    patch.setattr(loading, "frozen_dtype", lambda _: torch.bfloat16)
    for user in (measured_model, probe, collation):
        patch.setattr(user, "mixed_precision", lambda _: torch.autocast("cpu", torch.bfloat16))
    for trainer in (shards, model_setup):
        patch.setattr(trainer, "mixes_precision", lambda _: True)


def _use_kernels(patch: pytest.MonkeyPatch, *, has_kernel: bool) -> None:
    choose: Callable[..., TokenBudget] = vars(factory)["choose_budget"]

    def choose_on_a_gpu(model: Trainable, max_tokens: int, pad: int, _: torch.device) -> TokenBudget:
        budget = choose(model, max_tokens, pad, torch.device("cuda"))
        # A defect must not make it fall back to padding unseen.
        assert budget.packs == has_kernel
        assert (attention.get_attention(model) == attention.VARLEN) == has_kernel
        return budget

    patch.setattr(factory, "choose_budget", choose_on_a_gpu)
    patch.setattr(attention, "varlen_attn", varlen_kernel if has_kernel else _no_kernel)
    patch.setattr(completion_loss, "chunked_losses", completion_loss.tiled_losses)
    patch.setattr(completion_loss, "TILE_TOKENS", TILE_TOKENS)


def varlen_kernel(query: Tensor, key: Tensor, value: Tensor, *others: Any, **settings: Any) -> Tensor:
    """`reference_attention`, for the dtypes that PyTorch's kernel takes."""
    dtypes = {states.dtype for states in (query, key, value)}
    if len(dtypes) > 1 or not dtypes < {*KERNEL_DTYPES}:
        raise RuntimeError(f"FlashAttention only support fp16 and bf16 data type, not {dtypes}")
    return reference_attention(query, key, value, *others, **settings)


def _no_kernel(*_: object, **__: object) -> Tensor:
    raise RuntimeError("no kernel image is available for execution on the device")


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    bounds_of_keys: Tensor,
    *longest: int,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What PyTorch's kernel computes, row by row, on a CPU."""
    # cuDNN would build a graph for the bounds of almost every batch.
    assert torch._C._get_flash_sdp_enabled()
    assert not torch._C._get_cudnn_sdp_enabled()
    assert bounds.dtype == torch.int32
    assert torch.equal(bounds, bounds_of_keys)
    cuts = bounds.tolist()
    assert (cuts[0], cuts[-1]) == (0, len(query))
    assert longest == (max(end - begin for begin, end in pairwise(cuts)),) * 2
    assert window_size == (-1, 0)
    rows = []
    for begin, end in pairwise(cuts):
        queries, keys, values = (states[begin:end].transpose(0, 1) for states in (query, key, value))
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            output = scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=scale, enable_gqa=enable_gqa
            )
        rows.append(output.transpose(0, 1))
    return torch.cat(rows)


@functools.cache
def tiny_in_bfloat16() -> Path:
    """The tiny model in bfloat16, as most models are stored."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-bfloat16-"))
    shutil.copytree(tiny(), folder, dirs_exist_ok=True)
    loading.load_base(tiny(), torch.bfloat16, torch.device("cpu")).save_pretrained(folder)
    return folder
