# SPDX-License-Identifier: Apache-2.0
"""Judges in the report of an evaluation: their win rates, and what says how far to trust them."""

from dataclasses import asdict, dataclass

from finetune_trainer.report.document import Document, camel, showable


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownJudge:
    """One judge. Rows without a verdict are those with a reply that could not be read."""

    metric: str
    against: str
    model: str
    endpoint: str
    prompt: str
    """System turn of each call."""
    prompt_digest: str
    replies: str
    """File with the replies."""
    win_rate: float | None
    """None if the judge has none."""
    low: float | None = None
    """Bounds of the interval at 95 % confidence; None if there is none."""
    high: float | None = None
    rows: int
    """Rows of the sample."""
    rows_in_split: int
    won: int
    tied: int
    lost: int
    same: int
    """Ties because the answers are equal, without a call."""
    calls: int
    unreadable: int
    """Calls without a verdict."""
    flipped: int
    """Rows whose better answer changed with the order."""
    longer: int
    """Won and lost rows whose better answer is the longer one."""


def judge_document(judge: ShownJudge) -> Document:
    """A judge in JSON types, with the shares that show its faults; null where there are no rows."""
    compared = judge.won + judge.tied + judge.lost - judge.same
    decided = judge.won + judge.lost
    return {
        **{camel(name): value for name, value in asdict(judge).items()},
        "prompt": showable(judge.prompt),
        "positionBias": judge.flipped / compared if compared else None,
        "longerPreferred": judge.longer / decided if decided else None,
    }
