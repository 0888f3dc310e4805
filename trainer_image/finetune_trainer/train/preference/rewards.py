"""Rewards that DPO, KTO and ORPO give to answers: how far training has moved the model towards the good ones.

DPO and KTO: beta times the answer's log-likelihood less that under the reference model. ORPO, which has no
reference: beta times the mean log-likelihood of the answer's tokens.
"""

from pydantic import BaseModel


def describe_rewards(rewards: "RewardSums | None", of: str = "") -> str:
    """For the log, behind a loss; empty without rewards."""
    if rewards is None:
        return ""
    figures = (("accuracy", rewards.accuracy), ("margin", rewards.margin))
    return "".join(f", {of}reward {name} {value:.4f}" for name, value in figures if value is not None)


class RewardSums(BaseModel):
    """Summed over rows; exact across restarts."""

    chosen: float = 0
    """Rewards of good answers."""
    chosen_rows: int = 0
    rejected: float = 0
    """Rewards of bad answers."""
    rejected_rows: int = 0
    right: int = 0
    """Pairs whose good answer has the higher reward."""
    pairs: int = 0
    """None in KTO, whose rows have one answer each."""

    def __add__(self, other: "RewardSums") -> "RewardSums":
        mine, theirs = self.model_dump(), other.model_dump()
        return RewardSums(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def rows(self) -> int:
        """Rows counted; one with two answers once."""
        return self.pairs or self.chosen_rows + self.rejected_rows

    @property
    def accuracy(self) -> float | None:
        """Share of the pairs in the right order; None without pairs."""
        return self.right / self.pairs if self.pairs else None

    @property
    def margin(self) -> float | None:
        """Mean reward of good answers less that of bad ones; None where one kind is missing."""
        if not (self.chosen_rows and self.rejected_rows):
            return None
        return self.chosen / self.chosen_rows - self.rejected / self.rejected_rows

    def figures(self) -> dict[str, float | None]:
        """Under the names of the contract's fields."""
        return {"reward_accuracy": self.accuracy, "reward_margin": self.margin}
