# SPDX-License-Identifier: Apache-2.0
"""Train on a CPU as on a GPU: the base model is bfloat16, and accelerate wraps the forward pass.

On a GPU the Trainer has `bf16=True`. Then accelerate runs the forward pass under autocast and converts its
outputs to float32. The variable below has the same effect if that argument is false.
"""

import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import torch
from accelerate.state import AcceleratorState

from finetune_trainer.evaluate import measured
from finetune_trainer.model import load, quantization
from tools.models import tiny

VARIABLE: Final = "ACCELERATE_MIXED_PRECISION"


@contextmanager
def as_a_gpu_trains() -> Iterator[None]:
    """Load, train and evaluate everything in the block as on a GPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "bf16")
        for module in (load, quantization):
            patch.setattr(module, "multiplies_bfloat16", lambda _: True)
        patch.setattr(measured, "mixed_precision", lambda _: torch.autocast("cpu", torch.bfloat16))
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@functools.cache
def tiny_in_bfloat16() -> Path:
    """The tiny model in bfloat16, as most models are stored."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-bfloat16-"))
    shutil.copytree(tiny(), folder, dirs_exist_ok=True)
    load.load_base(tiny(), torch.bfloat16, torch.device("cpu")).save_pretrained(folder)
    return folder
