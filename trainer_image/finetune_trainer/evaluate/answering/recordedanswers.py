# SPDX-License-Identifier: Apache-2.0
"""Answers that a serving engine generated before the trainer started."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import CheckFinding, EngineVersion
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, Subject
from finetune_trainer.evaluate.answering.exchange import Exchange
from finetune_trainer.evaluate.subjects.generation import AnswerRequest, GeneratedAnswer
from finetune_trainer.evaluate.subjects.optional import OPTIONAL
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.tokens.reasoning import AnswerReader

CHECK: Final = "AnswerEngine"


class RecordedAnswers:
    """The answers of one subject, as the trainer would have generated them."""

    def __init__(self, exchange: Exchange, subject: Subject, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the answers.

        Raises StageFailure: why the engine has not answered. For a subject without which the evaluation
        continues, it is final, so that an engine that cannot load the champion does not fail the evaluation.
        """
        problem = exchange.problem(subject)
        if problem is not None:
            raise StageFailure(problem.reason, problem.message) if subject in OPTIONAL else problem
        found = exchange.answers(subject)
        self._subject = subject
        self._reader = AnswerReader(tokenizer)
        self._seconds = None if found is None else found[0].seconds
        self._answers = {} if found is None else {answer.row: answer for answer in found[1]}

    def generate(self, requests: Sequence[AnswerRequest]) -> list[GeneratedAnswer]:
        """Return the answer to each request. Raises StageFailure (INTERNAL) if one is missing."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: AnswerRequest) -> GeneratedAnswer:
        if request.max_tokens <= 0:
            return GeneratedAnswer("", 0, "length", seconds=self._seconds)
        answer = self._answers.get(request.row)
        if answer is None:
            raise StageFailure(
                FailureReason.INTERNAL,
                f"the engine has no answer of the model {self._subject} to row {request.row}: the logs of the"
                " containers prompts and answers of the pod have the cause",
                ExitCode.INTERNAL,
            )
        ids = list(answer.ids)
        text = self._reader.content(request.prompt, ids)
        return GeneratedAnswer(text, len(ids), answer.finish_reason, seconds=self._seconds)


def exchange_of(config: EvaluateConfig) -> Exchange | None:
    """The folder with the answers; None if the trainer generates them."""
    engine = config.answer_engine
    return Exchange(Path(engine.folder)) if engine is not None and engine.is_separate else None


def recorded_version(config: EvaluateConfig) -> str | None:
    """Version of the engine that has answered in this pod; None if it had nothing to answer."""
    exchange = exchange_of(config)
    if exchange is None:
        return None
    found = (exchange.answers(subject) for subject in config.subjects)
    return next((answers[0].version for answers in found if answers is not None), None)


def engine_version(config: EvaluateConfig, version: str | None) -> EngineVersion | None:
    """The engine of the answers for the result; None if it is the trainer.

    Args:
        config: config of the stage.
        version: version of the engine, if the predictions record one.
    """
    engine = config.answer_engine
    if engine is None or not engine.is_separate:
        return None
    return EngineVersion(name=engine.name, version=version or "unknown")


def engine_findings(config: EvaluateConfig) -> tuple[CheckFinding, ...]:
    """Why the trainer has answered although the ComputeProfile has another engine."""
    engine = config.answer_engine
    if engine is None or not engine.unsupported:
        return ()
    return (CheckFinding(check=CHECK, veto=False, message=engine.unsupported),)
