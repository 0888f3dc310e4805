# SPDX-License-Identifier: Apache-2.0
"""Predicted memory of a step compared with the measured peak of a real one, on a CPU."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from finetune_trainer.contract.method import METHODS, TYPES, Method
from finetune_trainer.preflight.estimate.fake_step import Precision, StepShape, measure_step
from tools.bench.sheet import Sheet
from tools.sizing.realstep import measured_peak, small

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
