# SPDX-License-Identifier: Apache-2.0
"""Lets the judges of an evaluation compare the answers that it has measured."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import UnmeasuredSubject
from finetune_trainer.contract.own_metrics import CALLS_PER_ROW, Judge
from finetune_trainer.evaluate.estimates import TUNED
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.judge.asking import ask_all
from finetune_trainer.evaluate.judge.prompt import system_prompt
from finetune_trainer.evaluate.judge.questions import AnswerPair, Question, questions_of, sample
from finetune_trainer.evaluate.judge.replycounter import ReplyCounter
from finetune_trainer.evaluate.judge.results import Judged
from finetune_trainer.evaluate.judge.verdictlog import JudgeReply, VerdictLog
from finetune_trainer.evaluate.judge.verdicts import row_verdicts
from finetune_trainer.evaluate.predictions import PredictionLog
from finetune_trainer.evaluate.subjects.optional import FINAL_CODES
from finetune_trainer.remote.retries import Unreachable
from finetune_trainer.rows import Row
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.stage.judge_endpoint import JudgeProblem, endpoint_problem, located, open_endpoint
from finetune_trainer.store import RunFolder

logger = logging.getLogger(__name__)


def judged_rows(config: EvaluateConfig, rows: int) -> int:
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
    """Called with numbers of rows that a judge is done with, of `judged_rows`."""

    def run(self) -> list[Judged]:
        """Make the calls that earlier processes did not make.

        A judge that cannot be used has no win rate, and the evaluation continues: its other scores are worth
        more. Raises StageFailure (STORE_UNAVAILABLE), Preempted.
        """
        return [self._judge(judge) for judge in self.config.judges]

    def _judge(self, judge: Judge) -> Judged:
        problem = ""
        try:
            judge = located(judge)
        except StageFailure as failure:
            if failure.exit_code not in FINAL_CODES:
                raise
            problem = f"judge {judge.name}: {failure.message}"
        system = system_prompt(judge.instructions)
        log = VerdictLog(self.folder, judge, system)
        pairs = list(self._pairs(judge))
        chosen = sample(pairs, judge.max_calls, self.config.seed)
        questions = {pair.row: list(questions_of(judge, system, pair)) for pair in chosen}
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
        verdicts = row_verdicts(chosen, questions, log.find, len(pairs))
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
