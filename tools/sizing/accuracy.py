# SPDX-License-Identifier: Apache-2.0
"""Predicted memory of a step compared with the measured peak of a real one, on a CPU."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import METHODS, OBJECTIVES, TYPES, Method, Objective
from finetune_trainer.distributed.process_group import ALONE
from finetune_trainer.preflight.estimate.fake_step import Precision, StepShape, measure_step
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.tokens.encoding import EncodedAnswers, EncodedRow
from finetune_trainer.train.factory import make_trainer
from finetune_trainer.train.model_setup import trainable_model
from tools.bench.page import Sheet
from tools.models import tiny

VOCABULARY = 2048


def small(layers: int = 3) -> LlamaConfig:
    """The config of a model whose steps take seconds."""
    return LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
    )


def measured_peak(method: Method, shape: StepShape, dtype: torch.dtype, folder: Path) -> int:
    """Peak bytes of the tensors of two real steps of training a `small()` model.

    Args:
        method: the method.
        shape: what a step computes.
        dtype: dtype of the stored weights.
        folder: where the trainer may write.
    """
    torch.manual_seed(0)
    device = torch.device("cpu")
    model = trainable_model(_stored(dtype), method, device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    batches = 2 if shape.accumulates else 1
    hyperparameters = Hyperparameters(
        epochs=1,
        learning_rate=1e-4,
        batch_size=batches * shape.rows,
        max_batch_rows=shape.rows,
        max_sequence_length=shape.length,
        seed=1,
        total_steps=2,
        warmup_ratio=0.05,
        scheduler="Linear",
        weight_decay=0,
        save_every_steps=10,
        gradient_checkpointing=shape.checkpointing,
    )
    trainer = make_trainer(
        model,
        _rows(method.objective, 2 * batches * shape.rows, shape.length),
        tokenizer=load_tokenizer(tiny()),
        method=method,
        hyperparameters=hyperparameters,
        folder=folder,
        device=device,
        continues=False,
        group=ALONE,
    )
    with _allocations() as held:
        trainer.train()
    return weights + max(held)


@cache
def _stored(dtype: torch.dtype) -> Path:
    folder = Path(mkdtemp(prefix="realstep-"))
    model = AutoModelForCausalLM.from_config(small(), dtype=dtype)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    return folder


def _rows(objective: Objective, count: int, length: int) -> list[Any]:
    draw = random.Random(7)  # noqa: S311 - token ids are not secret

    def ids(number: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(number)]

    # The rows of a batch differ in length, so it has a mask.
    if not OBJECTIVES[objective].rows.is_preference_data:
        return [EncodedRow(tokens, tokens) for tokens in (ids(length - at % 2) for at in range(count))]
    return [
        EncodedAnswers(ids(1), ids(length - 1 - index % 2), rejected=ids(length - 2), label=bool(index % 2))
        for index in range(count)
    ]


@contextmanager
def _allocations() -> Iterator[list[int]]:
    """Collects the bytes that PyTorch's allocator holds after each allocation of the block."""
    held = [0]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield held
    results: Any = profiled.profiler.kineto_results
    for event in results.events():
        if event.name() == "[memory]":
            held.append(held[-1] + event.nbytes())


MEASURED_METHODS: Final = tuple(
    Method(objective=objective, type=type_) for objective, type_ in METHODS if not TYPES[type_].quantized_base
)
MEBIBYTE: Final = 1 << 20


def sheet() -> Sheet:
    """One row per method, with and without gradient checkpointing."""
    return Sheet(
        "Peak bytes of a step of 2 rows of 640 tokens, MiB",
        ("", "predicted", "measured", "difference"),
        tuple(_row(method, checkpointing) for method in MEASURED_METHODS for checkpointing in (False, True)),
    )


def _row(method: Method, checkpointing: bool) -> tuple[str, ...]:
    shape = StepShape(rows=2, length=640, checkpointing=checkpointing)
    with TemporaryDirectory() as folder:
        measured = measured_peak(method, shape, torch.float32, Path(folder))
    predicted = measure_step(small(), method, shape, Precision(torch.float32, autocast=False)).peak_bytes
    return (
        f"{method.label}, checkpointing" if checkpointing else method.label,
        f"{predicted / MEBIBYTE:.1f}",
        f"{measured / MEBIBYTE:.1f}",
        f"{predicted / measured - 1:+.1%}",
    )
