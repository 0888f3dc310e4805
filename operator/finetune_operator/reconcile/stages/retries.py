# SPDX-License-Identifier: Apache-2.0
"""When the operator retries a stage that failed because of its source, store or credentials.

The wait grows with each failure in a row.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.api.stage_status import RetryStatus
from finetune_operator.manifests.labels import short_hash
from finetune_operator.reconcile.passes import Blocked, Working
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import FailureReason, Stage

FIRST_RETRY_SECONDS: Final = 60
MAX_RETRY_SECONDS: Final = 3600
MAX_READ_ATTEMPTS: Final = 3
"""Number of attempts to read a stage's result from the store before the stage counts as failed."""
JITTER: Final = 0.1
"""Fraction by which a wait is shorter or longer, so that the runs of a store do not retry all at once."""

RETRYABLE_REASONS: Final = frozenset(
    {
        FailureReason.ACCESS_DENIED.value,
        FailureReason.INVALID_CREDENTIALS.value,
        FailureReason.SOURCE_NOT_FOUND.value,
        FailureReason.SOURCE_UNAVAILABLE.value,
        FailureReason.STORE_UNAVAILABLE.value,
    }
)
"""Reasons of failures that end when the source, the store or the credentials are repaired."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The stage failed, and the operator retries it."""

    reason: str
    message: str
    result: StageResult | None
    status: RetryStatus
    halt: Working | Blocked
    """How the pass ends."""


def count_failure(
    before: RetryStatus | None, stage: Stage, failed_at: datetime, *, reading: bool | None = None
) -> RetryStatus:
    """The failures in a row, including the one at `failed_at`. Several passes count it once.

    Args:
        reading: whether an attempt to read the stage's result failed. Such failures are counted separately.
    """
    if before is None or (before.stage, before.reading, before.gave_back) != (stage, reading, None):
        return RetryStatus(stage=stage, failures=1, last_failure_at=failed_at, reading=reading)
    if before.last_failure_at >= failed_at:
        return before
    return before.model_copy(update={"failures": before.failures + 1, "last_failure_at": failed_at})


def count_release(before: RetryStatus | None, stage: Stage, now: datetime) -> RetryStatus:
    """The times in a row that the stage gave its devices back, including the one at `now`."""
    times = before.failures if before is not None and before.stage == stage and before.gave_back else 0
    return RetryStatus(stage=stage, failures=times + 1, last_failure_at=now, gave_back=True)


def due_at(status: RetryStatus, uid: str) -> datetime:
    """When the next attempt starts: after 1 minute, and each time twice as long, up to 1 hour.

    The `uid` decides by how much each wait is shorter or longer, at most 10 %.
    """
    doubled = min(status.failures - 1, 10)
    seconds = min(FIRST_RETRY_SECONDS * 2**doubled, MAX_RETRY_SECONDS)
    fraction = int(short_hash(uid, status.stage, str(status.failures), length=8), 16) / 0xFFFFFFFF
    return status.last_failure_at + timedelta(seconds=round(seconds * (1 + JITTER * (2 * fraction - 1))))


def wait_until(due: datetime, result: StageResult, status: RetryStatus, now: datetime) -> Retry:
    """Wait for the next attempt."""
    failures = f"failure {status.failures} in a row" if status.failures > 1 else "first failure"
    message = f"{result.message} ({failures}; next attempt at {due:%H:%M:%S} UTC)"
    seconds = max(1.0, (due - now).total_seconds())
    return Retry(result.reason, result.message, result, status, Blocked(result.reason, message, seconds))
