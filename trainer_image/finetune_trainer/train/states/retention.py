# SPDX-License-Identifier: Apache-2.0
"""Retention: the steps whose weights are kept, in addition to the best and final, to become Checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from finetune_trainer.contract.configs import TrainConfig


class KeptStep(BaseModel):
    """Kept weights; losses in the trainer's unit."""

    step: int
    epoch: float
    train_loss: float
    """Mean training loss of the epoch up to this step."""
    validation_loss: float | None = None
    """Validation loss, if validation ran after this step."""


@dataclass(frozen=True)
class Retention:
    """Keeps the newest periodic saves, and steps that are always kept.

    The last step is not among them, because its weights are the final ones. Since a run may end early after
    any step, one more periodic save than `newest` is kept until the run ends.
    """

    newest: int
    """Number of newest periodic saves to publish."""
    always: frozenset[int]
    """Steps that are always published."""
    every_steps: int
    total_steps: int

    @classmethod
    def of(cls, config: TrainConfig) -> "Retention":
        """The retention of a run."""
        hyperparameters = config.hyperparameters
        return cls(
            config.keep,
            frozenset(config.keep_steps),
            hyperparameters.save_every_steps,
            hyperparameters.total_steps,
        )

    def keeps(self, step: int, *, loss_is_high: bool) -> bool:
        """Whether the weights after `step` are kept. A periodic save is skipped if `loss_is_high`."""
        if step == self.total_steps:
            return False
        periodic = self.newest > 0 and step % self.every_steps == 0 and not loss_is_high
        return periodic or step in self.always

    def candidates(self, kept: Sequence[KeptStep]) -> list[KeptStep]:
        """The steps of `kept` that may become a Checkpoint, sorted by step."""
        return self._choose(kept, self.newest + 1)

    def published(self, kept: Sequence[KeptStep], final_step: int) -> list[KeptStep]:
        """The steps of `kept` that become Checkpoints, in addition to the last step of the run."""
        return self._choose([each for each in kept if each.step != final_step], self.newest)

    def _choose(self, kept: Sequence[KeptStep], limit: int) -> list[KeptStep]:
        periodic = [each.step for each in kept if each.step not in self.always]
        steps = self.always.union(periodic[-limit:] if self.newest else ())
        return [each for each in kept if each.step in steps]
