# SPDX-License-Identifier: Apache-2.0
"""The interface between the training loop and the trainers of all methods."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from finetune_trainer.train.figures import RewardSums, RowLossCollector, StepFigures
from finetune_trainer.train.states.resume_states import StateSnapshot


@dataclass(frozen=True)
class Validation:
    """Result of a validation."""

    loss: float
    """Mean loss, in the trainer's unit."""
    rewards: RewardSums | None = None
    """Rewards, for methods that train on preference data."""


class TrainerProtocol(Protocol):
    """The methods that every trainer provides."""

    unit: str
    """Unit of the loss, for messages."""

    def gradient_norm(self) -> float:
        """Norm of all gradients of the current optimizer step before clipping, the same in all processes."""
        ...

    def take_step(self) -> StepFigures:
        """Return the figures of the current optimizer step of this process, when all batches are computed."""
        ...

    def validate(
        self, batches: Iterable[Mapping[str, Tensor]], by_row: RowLossCollector | None = None
    ) -> Validation:
        """Validate without dropout and random numbers; leaves the model in evaluation mode.

        `by_row` gets the losses of the rows.
        """
        ...

    def collect_state(self) -> StateSnapshot:
        """Collect this process's files of the state from which training resumes. Collective."""
        ...
