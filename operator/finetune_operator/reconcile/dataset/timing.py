"""When the source of a Dataset is to be looked at again."""

import math
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.api.dataset import Dataset
from finetune_operator.manifests.labels import short_hash
from finetune_operator.reconcile.records.sourcechecks import is_check_requested

JITTER: Final = 0.1
"""Fraction of the interval by which a look may be earlier or later, so that not all come at once."""
LATE: Final = 60.0
"""Seconds after which a look that is due counts as missed; also how long a slot for it is open."""
SPREAD: Final = 600.0
"""Seconds over which the looks that were missed are spread."""


def until_slot(dataset: Dataset, now: datetime) -> float:
    """Seconds until a look at the source that is due may begin; 0 for at once.

    Looks that fell due while no operator ran begin in the course of `SPREAD` seconds, each Dataset in a slot
    of its own, and not all at once.
    """
    refresh = dataset.status.refresh
    if is_check_requested(dataset) or refresh is None or refresh.next_check_at is None:
        return 0.0
    late = (now - refresh.next_check_at).total_seconds() - LATE
    if late <= 0:
        return 0.0
    since_slot = (late - _share(dataset, "slot") * SPREAD) % SPREAD
    # Whole seconds, so that the next pass is not a moment too early.
    return 0.0 if since_slot < LATE else math.ceil(SPREAD - since_slot)


def next_check(dataset: Dataset, number: int, now: datetime) -> datetime | None:
    """When look `number` is due if the one before has just ended: the same for the same Dataset and look."""
    if dataset.spec.refresh is None:
        return None
    factor = 1 + JITTER * (2 * _share(dataset, str(number)) - 1)
    return now + timedelta(seconds=round(dataset.spec.refresh.interval_seconds * factor))


def earliest(*seconds: float | None) -> float | None:
    """The shortest of several times to wait, each of which may be for ever."""
    return min((each for each in seconds if each is not None), default=None)


def _share(dataset: Dataset, what: str) -> float:
    """A number from 0 to 1 that is always the same for the same Dataset and purpose."""
    return int(short_hash(dataset.uid, what, length=8), 16) / 0xFFFFFFFF
