# SPDX-License-Identifier: Apache-2.0
"""Let the judges of an evaluation compare its measured answers: several calls at a time.

Each reply is stored when it arrives.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import UnmeasuredSubject
from finetune_trainer.contract.own_metrics import CALLS_PER_ROW, Judge
from finetune_trainer.evaluate.estimates import TUNED
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.judge.questions import (
    AnswerPair,
    Question,
    build_questions,
    read_verdict,
    sample,
    system_prompt,
)
from finetune_trainer.evaluate.judge.verdicts import Judged, JudgeReply, VerdictLog, combine_replies
from finetune_trainer.evaluate.measurement_log import PredictionLog
from finetune_trainer.evaluate.subjects.opening import FINAL_CODES
from finetune_trainer.remote.json_api import JsonApi
from finetune_trainer.remote.retries import ProblemKind, Unreachable
from finetune_trainer.rows import Row
from finetune_trainer.runtime.logs import SCRUBBER
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.stage.judge_endpoint import (
    JudgeProblem,
    endpoint_problem,
    open_endpoint,
    resolve_endpoint,
)
from finetune_trainer.store import RunFolder

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


CALL: Final = "chat/completions"
CALLS_IN_FLIGHT: Final = 8
LOOK_SECONDS: Final = 1.0
"""Max time until a signal is noticed."""
QUIET_SECONDS: Final = 10.0
"""Time without a reply after which the calls in flight are given up, once no new call is made."""
DRAIN_SECONDS: Final = 25.0
"""Max time for the calls in flight to end; less than the 30 s between SIGTERM and SIGKILL."""


async def ask_all(
    api: JsonApi,
    questions: Iterable[Question],
    on_reply: Callable[[JudgeReply], None],
    *,
    stop: Stop,
    feed: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Make all calls, or those in flight when `stop` is set or a call fails.

    Calls in flight are paid for, so they may end. The time for it counts from the last reply: a slow store
    that delays `on_reply` costs no replies that have arrived meanwhile.

    Args:
        api: the endpoint of the judge.
        questions: the calls to make.
        on_reply: gets each reply; an exception of it ends the calls.
        stop: set by a signal.
        feed: called at least once per second.
        clock: seconds of a clock that never goes back.

    Raises Unreachable if the endpoint cannot be used.
    """
    waiting, running = iter(questions), set[asyncio.Task[JudgeReply]]()
    failure: BaseException | None = None
    quiet, deadline = float("inf"), float("inf")
    async with api:
        while True:
            while len(running) < CALLS_IN_FLIGHT and failure is None and not stop.is_set():
                question = next(waiting, None)
                if question is None:
                    break
                running.add(asyncio.create_task(_ask(api, question)))
            if not running or clock() > min(quiet, deadline):
                break
            done, running = await asyncio.wait(
                running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            feed()
            for task in done:
                if (error := task.exception()) is None:
                    on_reply(task.result())
                else:
                    failure = failure or error
            if failure is not None or stop.is_set():
                now = clock()
                deadline = min(deadline, now + DRAIN_SECONDS)
                if done or quiet == float("inf"):
                    quiet = now + QUIET_SECONDS
    if failure is not None:
        raise failure


async def _ask(api: JsonApi, question: Question) -> JudgeReply:
    """Make one call. Raises Unreachable, except if the endpoint refuses this call only."""
    try:
        reply = _text_of(await api.post(CALL, dict(question.body)))
    except Unreachable as error:
        if error.problem.kind is not ProblemKind.REFUSED:
            raise
        return _reply(question, reason=error.problem.text)
    verdict = read_verdict(reply)
    if verdict is None:
        return _reply(question, reason="the reply has no verdict")
    return _reply(question, better=verdict.better, reason=SCRUBBER.scrub(verdict.reason))


def _reply(question: Question, **found: Any) -> JudgeReply:
    return JudgeReply(
        digest=question.digest,
        row=question.pair.row,
        tuned="A" if question.tuned_first else "B",
        **found,
    )


def _text_of(response: Any) -> str:
    """The text of the first choice; empty if there is none."""
    try:
        return str(response["choices"][0]["message"]["content"] or "")
    except (LookupError, TypeError):
        return ""


logger = logging.getLogger(__name__)


def max_judged_rows(config: EvaluateConfig, rows: int) -> int:
    """Max number of rows that all judges together judge, of a split with this number of rows."""
    return sum(min(rows, judge.max_calls // CALLS_PER_ROW) for judge in config.judges)


@dataclass(frozen=True, kw_only=True)
class Judging:
    """The answers to judge, and where the replies are kept."""

    config: EvaluateConfig
    rows: Sequence[Row]
    """All rows of the split."""
    examples: Sequence[Example]
    """The measured rows."""
    log: PredictionLog
    folder: RunFolder
    unmeasured: Sequence[UnmeasuredSubject]
    stop: Stop
    feed: Callable[[], None]
    """Records a sign of life."""
    count: Callable[[int], None]
    """Called with numbers of rows that a judge is done with, of `max_judged_rows`."""

    def run(self) -> list[Judged]:
        """Make the calls that earlier processes did not make.

        A judge that cannot be used has no win rate, and the evaluation continues: its other scores are worth
        more. Raises StageFailure (STORE_UNAVAILABLE), Preempted.
        """
        return [self._judge(judge) for judge in self.config.judges]

    def _judge(self, judge: Judge) -> Judged:
        problem = ""
        try:
            judge = resolve_endpoint(judge)
        except StageFailure as failure:
            if failure.exit_code not in FINAL_CODES:
                raise
            problem = f"judge {judge.name}: {failure.message}"
        system = system_prompt(judge.instructions)
        log = VerdictLog(self.folder, judge, system)
        pairs = list(self._pairs(judge))
        chosen = sample(pairs, judge.max_calls, self.config.seed)
        questions = {pair.row: list(build_questions(judge, system, pair)) for pair in chosen}
        counter = ReplyCounter(
            judge,
            calls=sum(map(len, questions.values())),
            rows=min(len(self.examples), judge.max_calls // CALLS_PER_ROW),
            count=self.count,
        )
        problem = problem or self._missing_answers(judge, pairs)
        if not problem:
            compared = (judge.metric, len(chosen), len(pairs), judge.against)
            logger.info("%s: comparing answers to %d of %d rows with those of %s", *compared)
            try:
                self._ask(judge, [each for of_row in questions.values() for each in of_row], log, counter)
            except JudgeProblem as error:
                problem = str(error)
        counter.end()
        verdicts = combine_replies(chosen, questions, log.find, len(pairs))
        if problem:
            logger.warning("%s has no value: %s", judge.metric, problem)
        else:
            logger.info("%s: %s", judge.metric, verdicts.counts)
        return Judged(judge=judge, prompt=system, verdicts=verdicts, problem=problem, replies_uri=log.uri)

    def _missing_answers(self, judge: Judge, pairs: Sequence[AnswerPair]) -> str:
        """Why there is nothing to compare; empty if there is."""
        for each in self.unmeasured:
            if each.subject == judge.against:
                return f"judge {judge.name}: {each.subject} was not measured: {each.message}"
        if pairs:
            return ""
        return f"judge {judge.name}: no row has an answer of {TUNED} and one of {judge.against} to compare"

    def _pairs(self, judge: Judge) -> Iterator[AnswerPair]:
        """Yield the answers to the rows that both have answered."""
        own = {row: answer.text for row, answer in self.log.of(TUNED).items()}
        if judge.against == "Reference":
            others = {example.row: next(iter(example.accepted), None) for example in self.examples}
        else:
            others = {row: answer.text for row, answer in self.log.of(judge.against).items()}
        for example in self.examples:
            tuned, other = own.get(example.row), others.get(example.row)
            if tuned is not None and other is not None:
                yield AnswerPair(example.row, self.rows[example.row - 1].input, tuned, other)

    def _ask(
        self, judge: Judge, questions: Sequence[Question], log: VerdictLog, counter: ReplyCounter
    ) -> None:
        """Make the missing calls. Raises JudgeProblem, StageFailure (STORE_UNAVAILABLE), Preempted."""

        def keep(reply: JudgeReply) -> None:
            log.add(reply)
            counter.add([reply], count=not self.stop.is_set())

        replies = [log.find(question) for question in questions]
        counter.add([reply for reply in replies if reply is not None])
        missing = [question for question, reply in zip(questions, replies, strict=True) if reply is None]
        if not missing:
            return
        # A signal lets the calls in flight end, because they are paid for.
        self.stop.hold()
        try:
            api = open_endpoint(judge, self.feed)
            asyncio.run(ask_all(api, missing, keep, stop=self.stop, feed=self.feed))
        except Unreachable as error:
            problem = endpoint_problem(judge, error.problem)
            raise JudgeProblem(f"{problem}, then measure the Checkpoint in an Evaluation") from error
        except StageFailure as failure:
            if failure.exit_code not in FINAL_CODES:
                raise
            raise JudgeProblem(f"judge {judge.name}: {failure.message}") from failure
        finally:
            log.save()
            self.stop.release()
        if self.stop.is_set():
            raise Preempted
