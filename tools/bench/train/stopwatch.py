# SPDX-License-Identifier: Apache-2.0
"""Time the optimizer steps with a hook of PyTorch, in the same way for both programs."""

import time
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Stopwatch:
    """Records the end of every optimizer step of this process from its creation."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        register_optimizer_step_post_hook(self._step)

    def _step(self, _optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[Any, Any]) -> None:
        self._ends.append(time.perf_counter())

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self._ends)

    @property
    def seconds(self) -> float:
        """Time from the end of the first step to the end of the last step."""
        return self._ends[-1] - self._ends[0]
