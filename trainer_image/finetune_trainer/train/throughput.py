"""How fast training goes, from its last steps."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from finetune_trainer.contract.progress import Progress
from finetune_trainer.train.preference.rewards import RewardSums

STEPS: Final = 20
"""Steps that loss and speed are averaged over."""


@dataclass(frozen=True)
class _Step:
    nats: float
    labels: int
    tokens: int
    rewards: RewardSums | None
    seconds: float


class Pace:
    """Averages over the last steps of this process."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._steps: deque[_Step] = deque(maxlen=STEPS)
        self._began = time.monotonic()

    def begin_step(self) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def end_step(self, nats: float, labels: int, tokens: int, rewards: RewardSums | None = None) -> None:
        """Stop the clock; the step's summed loss, labelled tokens, tokens read, and rewards."""
        self._steps.append(_Step(nats, labels, tokens, rewards, time.monotonic() - self._began))

    @property
    def rewards(self) -> RewardSums | None:
        """Of the last steps; None where answers have no rewards."""
        known = [done.rewards for done in self._steps if done.rewards is not None]
        return sum(known, RewardSums()) if known else None

    def progress(self, step: int, epoch: float, learning_rate: float) -> Progress:
        """What the operator gets after a step of this process."""
        seconds = sum(done.seconds for done in self._steps)
        rewards = self.rewards or RewardSums()
        return Progress(
            step=step,
            total_steps=self._total_steps,
            epoch=round(epoch, 3),
            loss=sum(done.nats for done in self._steps) / sum(done.labels for done in self._steps),
            reward_accuracy=rewards.accuracy,
            reward_margin=rewards.margin,
            learning_rate=learning_rate,
            tokens_per_second=round(sum(done.tokens for done in self._steps) / seconds, 1),
            eta_seconds=round((self._total_steps - step) * seconds / len(self._steps), 1),
        )
