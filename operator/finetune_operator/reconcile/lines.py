"""Model lines: which Checkpoint a line's followers should serve."""

from datetime import datetime, timedelta

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.build.labels import RECORDED_AT
from finetune_operator.reconcile.world import CheckpointIndex


def is_rejected(checkpoint: Checkpoint) -> bool:
    """Whether a person has withdrawn it."""
    return checkpoint.spec.approval is not None and checkpoint.spec.approval.state == "Rejected"


def is_approved(checkpoint: Checkpoint) -> bool:
    """Whether a person has approved it."""
    return checkpoint.spec.approval is not None and checkpoint.spec.approval.state == "Approved"


def standing(index: CheckpointIndex, name: str) -> Checkpoint | None:
    """The Checkpoint of this name, unless it is being deleted: then its weights may be on their way out."""
    checkpoint = index.get(name)
    return checkpoint if checkpoint is not None and not _is_going(checkpoint) else None


def champion(index: CheckpointIndex, model: str) -> Checkpoint | None:
    """The line's Checkpoint with the newest `status.promotedAt` that nobody has rejected or deleted."""
    best: Checkpoint | None = None
    best_key: tuple[datetime, str] | None = None
    for checkpoint in index.of_model(model):
        promoted_at = checkpoint.status.promoted_at
        if promoted_at is None or is_rejected(checkpoint) or _is_going(checkpoint):
            continue
        key = (promoted_at, checkpoint.name)
        if best_key is None or key > best_key:
            best, best_key = checkpoint, key
    return best


def champion_name(index: CheckpointIndex, model: str) -> str | None:
    """The champion's name, or None where the line has no champion."""
    current = champion(index, model)
    return None if current is None else current.name


def is_older(checkpoint: Checkpoint, than: Checkpoint) -> bool:
    """Whether it was recorded before the other one."""
    mine, other = _recorded_at(checkpoint), _recorded_at(than)
    return mine is not None and other is not None and mine < other


def promotion_time(index: CheckpointIndex, model: str, now: datetime) -> datetime:
    """A time for `promotedAt` that is newer than every other of the line, also where clocks disagree."""
    times = [c.status.promoted_at for c in index.of_model(model) if c.status.promoted_at is not None]
    return max([now, *(time + timedelta(milliseconds=1) for time in times)])


def _recorded_at(checkpoint: Checkpoint) -> datetime | None:
    """When the operator first recorded it, which a restored one still says; at the latest when created."""
    created = checkpoint.metadata.creation_timestamp
    try:
        recorded = datetime.fromisoformat(checkpoint.metadata.annotations.get(RECORDED_AT, ""))
    except ValueError:
        return created
    if recorded.tzinfo is None:
        return created
    return recorded if created is None else min(recorded, created)


def _is_going(checkpoint: Checkpoint) -> bool:
    return checkpoint.metadata.deletion_timestamp is not None
