"""When each optimizer step ended, told by PyTorch itself, so that both programs are timed alike."""

import time
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Stopwatch:
    """Listens to every optimizer of this process from its making on."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        register_optimizer_step_post_hook(self._step)

    def _step(self, _optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[Any, Any]) -> None:
        self._ends.append(time.perf_counter())

    @property
    def steps(self) -> int:
        """How many ended."""
        return len(self._ends)

    @property
    def seconds(self) -> float:
        """From the end of the first step to that of the last."""
        return self._ends[-1] - self._ends[0]
