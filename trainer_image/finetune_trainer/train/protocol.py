"""What a training loop needs of a trainer, whatever its rows and its loss are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from finetune_trainer.train.preference.rewards import RewardSums
from finetune_trainer.train.throughput import StepFigures


@dataclass(frozen=True)
class Validation:
    """What held-out rows say about the model."""

    loss: float
    """In the learner's unit."""
    rewards: RewardSums | None = None
    """Of methods that learn from preferences."""


class TrainerProtocol(Protocol):
    """One of our trainers."""

    unit: str
    """What the loss is, for messages."""

    @property
    def loss_sum(self) -> float:
        """Summed loss of this process's batches of the optimizer step in progress."""
        ...

    def take_step(self) -> StepFigures:
        """Figures of this process of the optimizer step in progress; begins the next."""
        ...

    def validate(self, batches: Iterable[Mapping[str, Tensor]]) -> Validation:
        """Without dropout and without random numbers; leaves the model in evaluation mode."""
        ...

    def collect_state(self) -> Callable[[Path], None]:
        """Of all processes; what it returns writes it, in the leader, as `train` reads it to resume."""
        ...
