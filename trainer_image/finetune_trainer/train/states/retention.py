"""Which steps' weights are kept beside the best and the final ones, to become Checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from finetune_trainer.contract.configs.train import TrainConfig


class KeptStep(BaseModel):
    """Weights that were kept; losses in nats a token."""

    step: int
    epoch: float
    train_loss: float
    """Token mean of the step's epoch up to it."""
    validation_loss: float | None = None
    """Where validation ran after this step."""


@dataclass(frozen=True)
class Retention:
    """The newest steps of those that are saved regularly, and steps that are always kept.

    The last step is neither: its weights are the final ones. As a run may end early, after any step, one
    step more than asked for is held until the end is known.
    """

    newest: int
    always: frozenset[int]
    every_steps: int
    total_steps: int

    @classmethod
    def of(cls, config: TrainConfig) -> "Retention":
        """The run's own."""
        chosen = config.hyperparameters
        return cls(config.keep, frozenset(config.keep_steps), chosen.save_every_steps, chosen.total_steps)

    def keeps(self, step: int, *, spoiled: bool) -> bool:
        """Whether the weights after `step` are kept; `spoiled`: the loss is too high for a regular save."""
        if step == self.total_steps:
            return False
        regular = self.newest > 0 and step % self.every_steps == 0 and not spoiled
        return regular or step in self.always

    def held(self, kept: Sequence[KeptStep]) -> list[KeptStep]:
        """Those of `kept`, in the order of their steps, that a Checkpoint may be made of."""
        return self._choose(kept, self.newest + 1)

    def published(self, kept: Sequence[KeptStep], final_step: int) -> list[KeptStep]:
        """Those that become Checkpoints beside that of the run's last step."""
        return self._choose([each for each in kept if each.step != final_step], self.newest)

    def _choose(self, kept: Sequence[KeptStep], most: int) -> list[KeptStep]:
        regular = [each.step for each in kept if each.step not in self.always]
        chosen = self.always.union(regular[-most:] if self.newest else ())
        return [each for each in kept if each.step in chosen]
