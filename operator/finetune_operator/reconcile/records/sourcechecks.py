# SPDX-License-Identifier: Apache-2.0
"""Schedule of the checks of a Dataset's source, which also decides whether a record may be removed."""

from datetime import datetime
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
