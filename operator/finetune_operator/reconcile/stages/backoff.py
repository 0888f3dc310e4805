"""When a stage that failed for its surroundings is tried again: ever later, and on devices only once the
store is known to answer."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.api.retrystatus import RetryStatus
from finetune_operator.manifests.labels import short_hash
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage

FIRST_SECONDS: Final = 60
LAST_SECONDS: Final = 3600
READ_ATTEMPTS: Final = 3
"""Times that the result of a stage is read from the store in vain before the stage counts as failed."""
JITTER: Final = 0.1
"""Fraction of the wait by which it may be shorter or longer, so that not all runs of a store come at once."""

RETRYABLE_REASONS: Final = frozenset(
    {
        FailureReason.ACCESS_DENIED.value,
        FailureReason.INVALID_CREDENTIALS.value,
        FailureReason.SOURCE_NOT_FOUND.value,
        FailureReason.SOURCE_UNAVAILABLE.value,
        FailureReason.STORE_UNAVAILABLE.value,
    }
)
"""Failures that end when somebody mends the surroundings; the stage is tried again."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Failed for now, and tried again; `halt` is how a pass ends meanwhile."""

    reason: str
    message: str
    result: StageResult | None
    status: RetryStatus
    halt: Working | Blocked


def counted(
    before: RetryStatus | None, stage: Stage, failed_at: datetime, *, reading: bool | None = None
) -> RetryStatus:
    """The failures in a row with the one of this moment; seeing it twice counts it once.

    `reading`: of reading the stage's result, which are counted apart from those of the stage.
    """
    if before is None or (before.stage, before.reading) != (stage, reading):
        return RetryStatus(stage=stage, failures=1, last_failure_at=failed_at, reading=reading)
    if before.last_failure_at >= failed_at:
        return before
    return before.model_copy(update={"failures": before.failures + 1, "last_failure_at": failed_at})


def due_at(status: RetryStatus, uid: str) -> datetime:
    """When the next try begins: after 1 minute, then twice as long each time, to an hour; ± 10 % by `uid`."""
    doubled = min(status.failures - 1, 10)
    seconds = min(FIRST_SECONDS * 2**doubled, LAST_SECONDS)
    share = int(short_hash(uid, status.stage, str(status.failures), length=8), 16) / 0xFFFFFFFF
    return status.last_failure_at + timedelta(seconds=round(seconds * (1 + JITTER * (2 * share - 1))))


def waiting(result: StageResult, status: RetryStatus, due: datetime, now: datetime) -> Retry:
    """Until `due`."""
    times = f"failure {status.failures} in a row" if status.failures > 1 else "first failure"
    message = f"{result.message} ({times}; next try at {due:%H:%M:%S} UTC)"
    left = max(1.0, (due - now).total_seconds())
    return Retry(result.reason, result.message, result, status, Blocked(result.reason, message, left))
