# SPDX-License-Identifier: Apache-2.0
"""How a process ends: the failure of a stage, which says what to fix, and the pod's termination message.

`Preempted` is the other early end, after the state is saved. The kubelet copies the content of the message's
file to the container's status.
"""

import logging
import os
from pathlib import Path

from finetune_trainer.contract.environment import (
    MAX_TERMINATION_MESSAGE_BYTES,
    TERMINATION_MESSAGE_ENV,
    TERMINATION_MESSAGE_PATH,
)
from finetune_trainer.contract.results import CheckpointResult, EvaluateResult, PrepareResult, StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.logs import SCRUBBER
from finetune_trainer.runtime.signals import Preempted

__all__ = ["Preempted", "StageFailure"]


class StageFailure(Exception):
    """Ends the stage with a reason for the operator and a message for the user, which has no credential.

    `exit_code` decides whether a retry can help: BAD_CONFIG and BAD_DATA fail the Job at once.
    """

    def __init__(
        self,
        reason: FailureReason,
        message: str,
        exit_code: ExitCode = ExitCode.BAD_CONFIG,
        prepare: PrepareResult | None = None,
    ) -> None:
        self.message = SCRUBBER.scrub(message)
        super().__init__(self.message)
        self.reason = reason
        self.exit_code = exit_code
        self.prepare = prepare


MAX_MESSAGE_LENGTH = 1000
"""Max characters of a failure's message if the result is too long."""

MIN_SCORES = 8
"""Number of scores that are kept at the cost of sentences."""
MAX_SENTENCE_LENGTHS = (200, 80, 20)
"""Max characters of a sentence about one gate or check if the result is too long: the first that fits."""

logger = logging.getLogger(__name__)


def fit_message(result: StageResult) -> str:
    """Return the result as JSON of at most `MAX_TERMINATION_MESSAGE_BYTES` bytes.

    Omits in this order: the loss curve; the learning curve; the parts of the lost time; probes of checkpoints
    that are neither the best nor the final one; warnings of preflight from the last one; warnings and then
    problems of prepare, from the last one (their count stays), and the sources of its difference; scores from
    the last one (the evidence of gates stays) and the ends of sentences of evaluate, or scores of score; the
    end of the message; the stage's own fields. `result.json` in the store has everything.
    """
    for omitted in ({"loss_curve": ()}, {"learning_curve": None}, {"repeats": ()}):
        if not _fits(result) and result.train is not None:
            result = result.model_copy(update={"train": result.train.model_copy(update=omitted)})
    if not _fits(result) and result.train is not None:
        checkpoints = tuple(map(_drop_kept_probe, result.train.checkpoints))
        result = result.model_copy(
            update={"train": result.train.model_copy(update={"checkpoints": checkpoints})}
        )
    while not _fits(result) and result.preflight is not None and result.preflight.warnings:
        fewer = {"warnings": result.preflight.warnings[:-1]}
        result = result.model_copy(update={"preflight": result.preflight.model_copy(update=fewer)})
    for listed in ("warnings", "problems"):
        while not _fits(result) and result.prepare is not None and getattr(result.prepare, listed):
            shorter = {listed: getattr(result.prepare, listed)[:-1]}
            result = result.model_copy(update={"prepare": result.prepare.model_copy(update=shorter)})
    if not _fits(result) and result.prepare is not None and result.prepare.difference is not None:
        shorter = {"difference": result.prepare.difference.model_copy(update={"sources": ()})}
        result = result.model_copy(update={"prepare": result.prepare.model_copy(update=shorter)})
    result = _with_fewer_scores(result)
    if not _fits(result):
        result = result.model_copy(update={"message": _truncate(result.message)})
    if not _fits(result):
        logger.warning("the result is too long for a termination message; result.json in the store has it")
        result = StageResult(
            contract=result.contract,
            nonce=result.nonce,
            config_digest=result.config_digest,
            stage=result.stage,
            run=result.run,
            outcome=result.outcome,
            reason=result.reason,
            message=result.message,
        )
    return result.to_json()


def _with_fewer_scores(result: StageResult) -> StageResult:
    result = _with_scores(result, MIN_SCORES)
    for limit in MAX_SENTENCE_LENGTHS:
        if not _fits(result) and result.evaluate is not None:
            result = _with_evaluation(result, **_short_sentences(result.evaluate, limit))
    while not _fits(result) and result.score is not None and result.score.scores:
        fewer = result.score.model_copy(update={"scores": result.score.scores[:-1]})
        result = result.model_copy(update={"score": fewer})
    return _with_scores(result, 0)


def _with_scores(result: StageResult, minimum: int) -> StageResult:
    """The result without its last scores, as few as necessary, and with at least `minimum` scores."""
    while not _fits(result) and result.evaluate is not None and len(result.evaluate.scores) > minimum:
        result = _with_evaluation(result, scores=result.evaluate.scores[:-1])
    return result


def _short_sentences(evaluated: EvaluateResult, limit: int) -> dict[str, object]:
    """The parts of an evaluation that have sentences, each of at most `limit` characters."""
    return {
        part: tuple(
            each.model_copy(update={field: _truncate(getattr(each, field), limit)})
            for each in getattr(evaluated, part)
        )
        for part, field in (("findings", "message"), ("unmeasured", "message"), ("evidence", "undecided"))
    }


def _with_evaluation(result: StageResult, **fields: object) -> StageResult:
    if result.evaluate is None:
        return result
    return result.model_copy(update={"evaluate": result.evaluate.model_copy(update=fields)})


def write(text: str, path: Path = Path(TERMINATION_MESSAGE_PATH)) -> None:
    """Write `text`, truncated to the limit, as the termination message, and log it.

    The kubelet creates the file before the container starts. If it is absent, nothing reads it. Outside a
    pod, `TERMINATION_MESSAGE_ENV` may name a file, which is created.
    """
    logger.info("termination message: %s", text)
    named = os.environ.get(TERMINATION_MESSAGE_ENV)
    if named:
        path = Path(named)
    if named or path.exists():
        content = text.encode()[:MAX_TERMINATION_MESSAGE_BYTES].decode(errors="ignore")
        path.write_text(content, encoding="utf-8")


def _drop_kept_probe(checkpoint: CheckpointResult) -> CheckpointResult:
    if checkpoint.best or checkpoint.final:
        return checkpoint
    return checkpoint.model_copy(update={"probe": None})


def _fits(result: StageResult) -> bool:
    return len(result.to_json().encode()) <= MAX_TERMINATION_MESSAGE_BYTES


def _truncate(message: str, limit: int = MAX_MESSAGE_LENGTH) -> str:
    return message if len(message) <= limit else message[: limit - 1] + "…"
