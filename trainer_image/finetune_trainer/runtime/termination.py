"""The pod's last words: the kubelet puts this file's content into the container's status."""

import logging
from pathlib import Path

from finetune_trainer.contract.environment import MAX_TERMINATION_MESSAGE_BYTES, TERMINATION_MESSAGE_PATH
from finetune_trainer.contract.results import StageResult

MAX_MESSAGE_LENGTH = 1000
"""What is left of a failure's message where the result is too long."""

logger = logging.getLogger(__name__)


def bounded(result: StageResult) -> str:
    """The result as JSON of at most `MAX_TERMINATION_MESSAGE_BYTES` bytes.

    The loss curve is left out first, then warnings, then problems, from the last (their count stays), then
    the end of the message, then the stage's facts; the store's `result.json` has all of it.
    """
    if not _fits(result) and result.train is not None:
        result = result.model_copy(update={"train": result.train.model_copy(update={"loss_curve": ()})})
    for listed in ("warnings", "problems"):
        while not _fits(result) and result.prepare is not None and getattr(result.prepare, listed):
            left = {listed: getattr(result.prepare, listed)[:-1]}
            result = result.model_copy(update={"prepare": result.prepare.model_copy(update=left)})
    if not _fits(result):
        result = result.model_copy(update={"message": _cut(result.message)})
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


def write(text: str, path: Path = Path(TERMINATION_MESSAGE_PATH)) -> None:
    """Leave `text`, cut to the limit, as the termination message; outside a pod it is logged only.

    The kubelet creates the file before the container starts, so where it is absent nobody reads it.
    """
    logger.info("termination message: %s", text)
    if path.exists():
        content = text.encode()[:MAX_TERMINATION_MESSAGE_BYTES].decode(errors="ignore")
        path.write_text(content, encoding="utf-8")


def _fits(result: StageResult) -> bool:
    return len(result.to_json().encode()) <= MAX_TERMINATION_MESSAGE_BYTES


def _cut(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_LENGTH else message[: MAX_MESSAGE_LENGTH - 1] + "…"
