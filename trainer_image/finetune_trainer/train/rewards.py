# SPDX-License-Identifier: Apache-2.0
"""Rewards of answers in DPO, KTO and ORPO: how far training has moved the model towards an answer.

DPO and KTO: beta times the answer's log-likelihood minus that under the reference model. ORPO, which has no
reference model: beta times the mean log-likelihood of the answer's tokens.
"""

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel

from finetune_trainer.distributed.process_group import Group


def describe_rewards(rewards: "RewardSums | None", prefix: str = "") -> str:
    """Text for the log after a loss, each name with `prefix`; empty without rewards."""
    if rewards is None:
        return ""
    figures = (("accuracy", rewards.accuracy), ("margin", rewards.margin))
    return "".join(f", {prefix}reward {name} {value:.4f}" for name, value in figures if value is not None)


class RewardSums(BaseModel):
    """Rewards summed over rows; bit-identical across restarts."""

    chosen: float = 0
    """Summed rewards of chosen (KTO: desirable) answers."""
    chosen_rows: int = 0
    rejected: float = 0
    """Summed rewards of rejected (KTO: undesirable) answers."""
    rejected_rows: int = 0
    right: int = 0
    """Number of pairs whose chosen answer has the higher reward."""
    pairs: int = 0
    """Number of pairs; 0 in KTO, whose rows have one answer each."""

    def __add__(self, other: "RewardSums") -> "RewardSums":
        own, others = self.model_dump(), other.model_dump()
        return RewardSums(**{name: own[name] + others[name] for name in own})

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Create from the values of all fields, in their order."""
        return cls.model_validate(dict(zip(cls.model_fields, values, strict=True)))

    def all_reduced(self, group: Group) -> "RewardSums":
        """Sum over all processes. Collective."""
        return RewardSums.of(group.all_reduce_sum(*self.model_dump().values()))

    @property
    def rows(self) -> int:
        """Number of rows; a pair is one row."""
        return self.pairs or self.chosen_rows + self.rejected_rows

    @property
    def accuracy(self) -> float | None:
        """Share of pairs whose chosen answer has the higher reward; None without pairs."""
        return self.right / self.pairs if self.pairs else None

    @property
    def margin(self) -> float | None:
        """Mean reward of chosen minus rejected answers; None if one kind is missing."""
        if not (self.chosen_rows and self.rejected_rows):
            return None
        return self.chosen / self.chosen_rows - self.rejected / self.rejected_rows

    def figures(self) -> dict[str, float | None]:
        """Accuracy and margin, under the names of the contract's fields."""
        return {"reward_accuracy": self.accuracy, "reward_margin": self.margin}
