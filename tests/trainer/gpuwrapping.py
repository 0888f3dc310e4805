"""What training on a GPU does to a model, on a CPU: its base is bfloat16, and accelerate wraps its pass.

On a GPU the Trainer is given `bf16=True`. Then accelerate computes the model's pass under autocast and gives
its outputs as float32. The variable below asks for the same where that argument is false.
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

from finetune_trainer.model import load
from finetune_trainer.train import method
from tools.models import tiny

VARIABLE: Final = "ACCELERATE_MIXED_PRECISION"


@contextmanager
def as_a_gpu_trains() -> Iterator[None]:
    """Whatever is loaded and trained in the block."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "bf16")
        for module in (load, method):
            patch.setattr(module, "multiplies_bfloat16", lambda _: True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@functools.cache
def tiny_in_bfloat16() -> Path:
    """The tiny model as most models are stored."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-bfloat16-"))
    shutil.copytree(tiny(), folder, dirs_exist_ok=True)
    load.load_base(tiny(), torch.bfloat16, torch.device("cpu")).save_pretrained(folder)
    return folder
