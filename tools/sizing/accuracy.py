# SPDX-License-Identifier: Apache-2.0
"""Predicted memory of a step compared with the measured peak of a real one, on a CPU."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from finetune_trainer.contract.method import Method
from finetune_trainer.contract.methods import MethodType, methods_where
from finetune_trainer.preflight.estimate.fakestep import Precision, StepShape, measure_step
from tools.bench.sheet import Sheet
from tools.sizing.realstep import measured_peak, small

MEASURED_METHODS: Final = methods_where(lambda info: not info.quantized_base)
MEBIBYTE: Final = 1 << 20


def sheet() -> Sheet:
    """One row per method, with and without gradient checkpointing."""
    return Sheet(
        "Peak bytes of a step of 2 rows of 640 tokens, MiB",
        ("", "predicted", "measured", "difference"),
        tuple(_row(method, checkpointing) for method in MEASURED_METHODS for checkpointing in (False, True)),
    )


def _row(method: MethodType, checkpointing: bool) -> tuple[str, ...]:
    shape = StepShape(rows=2, length=640, checkpointing=checkpointing)
    how = Method(type=method)
    with TemporaryDirectory() as folder:
        measured = measured_peak(how, shape, torch.float32, Path(folder))
    predicted = measure_step(small(), how, shape, Precision(torch.float32, autocast=False)).peak_bytes
    return (
        f"{method}, checkpointing" if checkpointing else method,
        f"{predicted / MEBIBYTE:.1f}",
        f"{measured / MEBIBYTE:.1f}",
        f"{predicted / measured - 1:+.1%}",
    )
