# SPDX-License-Identifier: Apache-2.0
"""python -m tests.gpu.stage_process: a trainer process of the steps, with times of its optimizer steps.

It is `python -m finetune_trainer`, adapted to the PyTorch of the machine. If the environment variable
`TIMES_ENV` names a file, the time after each optimizer step is appended to it, one per line, in seconds.
`MEMORY_SHARE_ENV` is the share of the GPU's memory that PyTorch may use; without it, all.
"""

import functools
import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from finetune_trainer.runtime import signals

TIMES_ENV: Final = "GPU_STEPS_TIMES"
MEMORY_SHARE_ENV: Final = "GPU_STEPS_MEMORY_SHARE"
GROUPED_QUERIES: Final = "enable_gqa"


def adapt_varlen(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's varlen attention with the argument `enable_gqa`, which PyTorch has since 2.12.

    Its older kernel lets several heads of the queries share one of the keys without it.
    """
    if GROUPED_QUERIES in inspect.signature(kernel).parameters:
        return kernel

    @functools.wraps(kernel)
    def adapted(*states: Any, enable_gqa: bool = False, **settings: Any) -> Any:
        return kernel(*states, **settings)

    return adapted


def adapt() -> tuple[str, ...]:
    """Adapt this process to an older PyTorch than the pinned one. Returns what was adapted, as sentences."""
    from torch.nn.attention import varlen

    adapted = adapt_varlen(varlen.varlen_attn)
    if adapted is varlen.varlen_attn:
        return ()
    varlen.varlen_attn = adapted
    return (f"varlen attention without the argument {GROUPED_QUERIES}",)


def record_step_times(file: Path) -> None:
    """Append the time after each optimizer step to a file, when the device has finished the step."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def record(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        with file.open("a") as times:
            times.write(f"{time.perf_counter()!r}\n")

    register_optimizer_step_post_hook(record)


def main() -> int:
    """Run the stage of the config. Returns its exit code."""
    signals.exit_before_start()
    adapt()
    if (file := os.environ.get(TIMES_ENV)) is not None:
        record_step_times(Path(file))
    if (share := os.environ.get(MEMORY_SHARE_ENV)) is not None:
        import torch

        torch.cuda.set_per_process_memory_fraction(float(share))
    from finetune_trainer.entrypoint import process

    return process.run_command_line()


if __name__ == "__main__":
    sys.exit(main())
