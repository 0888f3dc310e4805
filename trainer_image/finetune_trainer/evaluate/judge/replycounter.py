# SPDX-License-Identifier: Apache-2.0
"""Ends the calls of a judge whose replies cannot be used."""

from collections.abc import Callable, Iterable
from typing import Final

from finetune_trainer.contract.own_metrics import CALLS_PER_ROW, Judge
from finetune_trainer.evaluate.judge.verdictlog import JudgeReply
from finetune_trainer.stage.judge_endpoint import JudgeProblem

MAX_UNREADABLE: Final = 0.1
"""Share of replies without a verdict above which a judge has no win rate."""
MIN_READABLE_CALLS: Final = 20
"""Number of first replies after which to give up if none of them has a verdict."""


class ReplyCounter:
    """Counts replies, and ends the calls of a judge that cannot get a win rate any more."""

    def __init__(self, judge: Judge, calls: int, rows: int, count: Callable[[int], None]) -> None:
        """Count up to `calls` replies about `rows` rows; `count` gets numbers of rows that are done."""
        self._judge, self._calls, self._rows, self._count = judge, calls, rows, count
        self._replies = self._unreadable = self._counted = 0

    def add(self, replies: Iterable[JudgeReply], *, count: bool = True) -> None:
        """Count replies. Raises JudgeProblem, and what `count` raises.

        Args:
            replies: the replies.
            count: whether to report progress.
        """
        for reply in replies:
            self._replies += 1
            self._unreadable += reply.better is None
            all_fail = self._replies == self._unreadable >= min(MIN_READABLE_CALLS, self._calls)
            if all_fail or self._unreadable > MAX_UNREADABLE * self._calls:
                raise JudgeProblem(
                    f"judge {self._judge.name}: {self._unreadable} of {self._replies} replies have no"
                    f" verdict, the last one because: {reply.reason}; use a model that replies as the prompt"
                    " in its file of replies says, and measure the Checkpoint in an Evaluation"
                )
        if count:
            self._report(self._replies // CALLS_PER_ROW)

    def end(self) -> None:
        """Report all rows as done. Raises what `count` raises."""
        self._report(self._rows)

    def _report(self, rows: int) -> None:
        if rows > self._counted:
            self._count(rows - self._counted)
            self._counted = rows
