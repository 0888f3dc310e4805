# SPDX-License-Identifier: Apache-2.0
"""The table of memory, devices and speed of published shapes of models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from transformers import Gemma3TextConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from finetune_trainer.contract.accelerators import CARDS, gibibytes
from finetune_trainer.contract.method import DEFAULT_OBJECTIVE, Method, can_shard, types_of
from finetune_trainer.model.loading import build_empty_model
from finetune_trainer.preflight.estimate.fake_step import StepShape
from finetune_trainer.preflight.estimate.memory import TrainMemory
from finetune_trainer.preflight.estimate.memory_plan import FITS
from finetune_trainer.preflight.estimate.prediction import ASSUMED_MFU, TERA, run_flops
from tools.bench.page import Sheet
from tools.models.llama import LLAMA


def _llama(size: str) -> LlamaConfig:
    return LlamaConfig(dtype="bfloat16", **LLAMA[size])


SHAPES: Final[Mapping[str, Callable[[], PretrainedConfig]]] = {
    "270M": lambda: Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        max_position_embeddings=32_768,
        dtype="bfloat16",
    ),
    "1B": lambda: _llama("1B"),
    "8B": lambda: _llama("8B"),
    "32B": lambda: Qwen3Config(
        vocab_size=151_936,
        hidden_size=5120,
        intermediate_size=25_600,
        num_hidden_layers=64,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ),
    "70B": lambda: _llama("70B"),
}
"""Gemma 3 270M, Llama 3.2 1B, Llama 3.1 8B, Qwen3 32B and Llama 3.3 70B."""


CARD: Final = CARDS["NVIDIA-H100-80GB-HBM3"]
LENGTHS: Final = (2048, 8192, 32_768)
MAX_DEVICES: Final = 64
SIZED_METHODS: Final = (
    *(Method(type=type_) for type_ in types_of(DEFAULT_OBJECTIVE)),
    Method(objective="DPO", type="QLoRA"),
)


@dataclass(frozen=True, slots=True)
class Size:
    """Memory of training with rows of one length."""

    alone_bytes: int
    """Peak of one device that trains alone."""
    devices: int | None
    """Smallest number of devices of `CARD` that fits, a power of two; None if there is none."""
    shared_bytes: int
    """Peak of each of these devices."""

    def __str__(self) -> str:
        alone = gibibytes(self.alone_bytes)
        if self.devices == 1:
            return alone
        if self.devices is None:
            return f"{alone}, does not fit"
        return f"{alone}, or {self.devices} × {gibibytes(self.shared_bytes)}"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that is trained with one method."""

    model: str
    method: Method
    sizes: tuple[Size, ...]
    """By length."""
    flops_per_token: float
    """With rows of the first length."""

    @property
    def tokens_per_second(self) -> float:
        """Of one device, at the utilization that preflight assumes."""
        return CARD.peak_teraflops * TERA * ASSUMED_MFU / self.flops_per_token


def shape_of(length: int) -> StepShape:
    """A batch of one row, whose activations are recomputed: the smallest step."""
    return StepShape(rows=1, length=length, checkpointing=True, masks=False)


def model_row(name: str, config: PretrainedConfig, method: Method) -> ModelRow:
    """Predict for one model and method."""
    memory = TrainMemory(build_empty_model(config), method, 1, sharded=False, on_gpu=True)
    first = shape_of(LENGTHS[0])
    return ModelRow(
        name,
        method,
        tuple(_size(memory, shape_of(length)) for length in LENGTHS),
        run_flops(memory.step(first), first, [first.length], epochs=1) / first.length,
    )


def _size(memory: TrainMemory, shape: StepShape) -> Size:
    alone = memory.peak_bytes(shape)
    limit = FITS * CARD.memory_bytes
    if alone < limit:
        return Size(alone, 1, alone)
    devices = 2
    while can_shard(memory.method) and devices <= MAX_DEVICES:
        shared = memory.with_shards(devices).peak_bytes(shape)
        if shared < limit:
            return Size(alone, devices, shared)
        devices *= 2
    return Size(alone, None, alone)


def sheet(rows: list[ModelRow]) -> Sheet:
    """The rows as a table."""
    return Sheet(
        f"GiB per device, or devices of {CARD.memory_gib} GiB × GiB",
        (
            "",
            *(f"{length:,} tokens" for length in LENGTHS),
            f"GFLOP per token of {LENGTHS[0]:,}",
            f"tokens/s per {CARD.name} at {ASSUMED_MFU:.0%}",
        ),
        tuple(
            (
                f"{row.model} {row.method.label}",
                *map(str, row.sizes),
                f"{row.flops_per_token / 1e9:,.1f}",
                f"{row.tokens_per_second:,.0f}",
            )
            for row in rows
        ),
    )
