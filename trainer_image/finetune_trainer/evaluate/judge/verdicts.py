# SPDX-License-Identifier: Apache-2.0
"""What the replies of a judge say about each row, and about the judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from finetune_trainer.evaluate.judge.questions import AnswerPair, Question
from finetune_trainer.evaluate.judge.verdictlog import JudgeReply

WON: Final = 1.0
TIED: Final = 0.5
LOST: Final = 0.0


@dataclass(frozen=True, kw_only=True)
class JudgeCounts:
    """Rows by their verdict, and replies. Rows with an unreadable reply have no verdict."""

    rows: int = 0
    """Rows of the sample."""
    rows_in_split: int = 0
    """Rows that could have been judged."""
    same: int = 0
    """Rows whose answers are equal: ties without a call."""
    calls: int = 0
    unreadable: int = 0
    """Calls whose reply has no verdict."""
    won: int = 0
    """Rows on which the answer of the tuned model is better in both orders."""
    tied: int = 0
    """Rows on which neither answer is better in both orders, also if the answers are equal."""
    lost: int = 0
    flipped: int = 0
    """Rows whose better answer changed with the order: the judge went by the position."""
    longer: int = 0
    """Won and lost rows whose better answer is the longer one."""


@dataclass(frozen=True)
class RowVerdicts:
    """The verdicts of one judge."""

    values: Mapping[int, float]
    """By number of the row: 1 if the tuned model is better in both orders, 0 if its opponent is, else 0.5."""
    counts: JudgeCounts
    reasons: Mapping[int, str] = field(default_factory=dict)
    """By number of the row, why it is won or lost, in the judge's words."""


def row_verdicts(
    pairs: Sequence[AnswerPair],
    questions: Mapping[int, Sequence[Question]],
    reply_to: Callable[[Question], JudgeReply | None],
    rows_in_split: int,
) -> RowVerdicts:
    """Combine the replies to both orders.

    Args:
        pairs: the rows of the sample.
        questions: both calls of each row with different answers.
        reply_to: returns the reply to a call.
        rows_in_split: number of rows from which the sample was taken.
    """
    values: dict[int, float] = {}
    reasons: dict[int, str] = {}
    calls = unreadable = flipped = longer = 0
    for pair in pairs:
        if pair.is_same:
            values[pair.row] = TIED
            continue
        replies = [reply for each in questions[pair.row] if (reply := reply_to(each)) is not None]
        calls += len(replies)
        preferences = [_preference_of(reply) for reply in replies]
        unreadable += preferences.count(None)
        readable = [each for each in preferences if each is not None]
        if len(readable) < len(questions[pair.row]):
            continue
        flipped += set(readable) == {WON, LOST}
        value = readable[0] if len(set(readable)) == 1 else TIED
        values[pair.row] = value
        if value != TIED:
            reasons[pair.row] = replies[0].reason
            better, worse = (pair.tuned, pair.other) if value == WON else (pair.other, pair.tuned)
            longer += len(better) > len(worse)
    found = list(values.values())
    counts = JudgeCounts(
        rows=len(pairs),
        rows_in_split=rows_in_split,
        same=sum(pair.is_same for pair in pairs),
        calls=calls,
        unreadable=unreadable,
        won=found.count(WON),
        tied=found.count(TIED),
        lost=found.count(LOST),
        flipped=flipped,
        longer=longer,
    )
    return RowVerdicts(values, counts, reasons)


def _preference_of(reply: JudgeReply) -> float | None:
    """The value of one order for the tuned model; None if the reply could not be read."""
    if reply.better is None or reply.better == "tie":
        return None if reply.better is None else TIED
    return WON if reply.better == reply.tuned else LOST
