"""Why a judge has no win rate, in sentences for the user."""

from collections.abc import Callable, Iterable
from typing import Final

from finetune_trainer.contract.judge import CALLS_PER_ROW, Judge
from finetune_trainer.evaluate.judge.verdictlog import JudgeReply
from finetune_trainer.remote.remoteproblems import ProblemKind, RemoteProblem

MAX_UNREADABLE: Final = 0.1
"""Share of replies without a verdict above which a judge has no win rate."""
MIN_READABLE_CALLS: Final = 20
"""If none of the first replies, as many as these, has a verdict, the following ones will have none either."""


class JudgeProblem(Exception):
    """A judge that cannot be used. The text is for the user."""


def endpoint_problem(judge: Judge, problem: RemoteProblem) -> JudgeProblem:
    """The problem of an endpoint, with what to do."""
    advice = "check its endpoint and model"
    match problem.kind:
        case ProblemKind.DENIED if judge.credentials is None:
            advice = "name a Secret with a token in its credentialsSecretRef"
        case ProblemKind.DENIED:
            advice = f"correct Secret {judge.credentials.name}" if judge.credentials else ""
        case ProblemKind.UNTRUSTED:
            advice = "add the certificate of its authority as caBundle to the Secret of credentialsSecretRef"
        case ProblemKind.FORBIDDEN_ADDRESS:
            advice = "use another server"
        case ProblemKind.TRANSIENT:
            advice = "check that its server runs, and that pods of this namespace can connect to it"
    return JudgeProblem(
        f"judge {judge.name}: {judge.endpoint}: {problem.text}; {advice}, then measure the Checkpoint in an"
        " Evaluation"
    )


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
