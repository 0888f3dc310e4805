# SPDX-License-Identifier: Apache-2.0
"""Schedule of the checks of a Dataset's sources: by request or by interval, spread over slots.

It also decides whether a record may be removed.
"""

import math
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.api.dataset import Dataset
from finetune_operator.manifests.labels import REFRESH_REQUESTED, short_hash
from finetune_operator.status.conditions import is_prepared

MAX_REQUEST_CHARACTERS: Final = 64
"""Limit of a request in the status, in characters; of a longer annotation it has the hash."""


def until_check(dataset: Dataset, now: datetime) -> float | None:
    """Seconds until the source must be checked; 0 while a check is due or under way, None for never."""
    if is_check_requested(dataset):
        return 0.0
    if dataset.spec.refresh is None or not is_prepared(dataset):
        return None
    refresh = dataset.status.refresh
    if refresh is None or refresh.next_check_at is None:
        return 0.0
    return max(0.0, (refresh.next_check_at - now).total_seconds())


def check_request(dataset: Dataset) -> str | None:
    """The annotation that requests a check of the source, as the status records it."""
    text = dataset.metadata.annotations.get(REFRESH_REQUESTED, "")
    short = text if len(text) <= MAX_REQUEST_CHARACTERS else short_hash(text, length=MAX_REQUEST_CHARACTERS)
    return short or None


def is_check_requested(dataset: Dataset) -> bool:
    """Whether a user requests a check of the source that has not been made."""
    refresh = dataset.status.refresh
    return check_request(dataset) not in (None, refresh.requested if refresh is not None else None)


JITTER: Final = 0.1
"""Fraction of the interval by which a check is earlier or later, so that not all run at once."""
SLOT_SECONDS: Final = 60.0
"""Seconds after which a check that is due counts as missed, and seconds for which its slot is open."""
SPREAD_SECONDS: Final = 600.0
"""Seconds over which missed checks are spread."""


def until_slot(dataset: Dataset, now: datetime) -> float:
    """Seconds until a check of the source that is due may start; 0: now.

    Checks that became due while no operator ran start over `SPREAD_SECONDS`, each Dataset in its own slot,
    and not all at once.
    """
    refresh = dataset.status.refresh
    if is_check_requested(dataset) or refresh is None or refresh.next_check_at is None:
        return 0.0
    late = (now - refresh.next_check_at).total_seconds() - SLOT_SECONDS
    if late <= 0:
        return 0.0
    since_slot = (late - _fraction(dataset, "slot") * SPREAD_SECONDS) % SPREAD_SECONDS
    # Whole seconds, so that the next pass is not a moment too early.
    return 0.0 if since_slot < SLOT_SECONDS else math.ceil(SPREAD_SECONDS - since_slot)


def next_check(dataset: Dataset, number: int, now: datetime) -> datetime | None:
    """Time at which check `number` is due if the one before has just ended; equal in each pass."""
    if dataset.spec.refresh is None:
        return None
    factor = 1 + JITTER * (2 * _fraction(dataset, str(number)) - 1)
    return now + timedelta(seconds=round(dataset.spec.refresh.interval_seconds * factor))


def _fraction(dataset: Dataset, what: str) -> float:
    """A number from 0 to 1 that is always equal for the same Dataset and purpose."""
    return int(short_hash(dataset.uid, what, length=8), 16) / 0xFFFFFFFF
