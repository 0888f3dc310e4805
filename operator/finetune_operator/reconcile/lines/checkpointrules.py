# SPDX-License-Identifier: Apache-2.0
"""Approval, age and deletion of a Checkpoint."""

from datetime import datetime

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.manifests.labels import NEVER_PROMOTED, RECORDED_AT


def is_rejected(checkpoint: Checkpoint) -> bool:
    """Whether a person has rejected it, which also withdraws a promotion."""
    return checkpoint.spec.approval is not None and checkpoint.spec.approval.state == "Rejected"


def is_approved(checkpoint: Checkpoint) -> bool:
    """Whether a person has approved it."""
    return checkpoint.spec.approval is not None and checkpoint.spec.approval.state == "Approved"


def never_promoted(checkpoint: Checkpoint) -> bool:
    """Whether nothing promotes it, by `promotion.mode: Never` of the run that made it."""
    return checkpoint.metadata.annotations.get(NEVER_PROMOTED) == "true"


def is_terminating(checkpoint: Checkpoint) -> bool:
    """Whether it is being deleted; its weights may already be gone then."""
    return checkpoint.metadata.deletion_timestamp is not None


def is_older(checkpoint: Checkpoint, than: Checkpoint) -> bool:
    """Whether it was recorded before the other one."""
    mine, other = recorded_at(checkpoint), recorded_at(than)
    return mine is not None and other is not None and mine < other


def recorded_at(checkpoint: Checkpoint) -> datetime | None:
    """Time of its first record, which survives a restore from a backup; at the latest its creation."""
    created = checkpoint.metadata.creation_timestamp
    try:
        recorded = datetime.fromisoformat(checkpoint.metadata.annotations.get(RECORDED_AT, ""))
    except ValueError:
        return created
    if recorded.tzinfo is None:
        return created
    return recorded if created is None else min(recorded, created)
