"""Model lines: which Checkpoint a line's followers should serve."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.build.labels import RECORDED_AT


class CheckpointIndex:
    """The Checkpoints of one namespace by name, by run and by model line; kept up to date one by one.

    What a line is asked for, its champion and its latest promotion, costs the same however long the line is.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint] = ()) -> None:
        self._by_name: dict[str, Checkpoint] = {}
        self._by_run: dict[str, dict[str, Checkpoint]] = {}
        self._lines: dict[str, _Line] = {}
        for checkpoint in checkpoints:
            self.put(checkpoint)

    def put(self, checkpoint: Checkpoint) -> None:
        self.remove(checkpoint.name)
        self._by_name[checkpoint.name] = checkpoint
        self._by_run.setdefault(checkpoint.spec.lineage.job.uid, {})[checkpoint.name] = checkpoint
        self._lines.setdefault(checkpoint.spec.model, _Line()).add(checkpoint)

    def remove(self, name: str) -> None:
        old = self._by_name.pop(name, None)
        if old is None:
            return
        run, model = old.spec.lineage.job.uid, old.spec.model
        self._by_run[run].pop(name)
        if not self._by_run[run]:
            del self._by_run[run]
        self._lines[model].discard(old)
        if self._lines[model].is_empty:
            del self._lines[model]

    @property
    def is_empty(self) -> bool:
        return not self._by_name

    def get(self, name: str) -> Checkpoint | None:
        return self._by_name.get(name)

    def of_run(self, uid: str) -> tuple[Checkpoint, ...]:
        """Checkpoints that the FineTuneJob with this uid made."""
        return tuple(self._by_run.get(uid, {}).values())

    def of_model(self, model: str) -> tuple[Checkpoint, ...]:
        """Checkpoints of this model line."""
        line = self._lines.get(model)
        return () if line is None else tuple(self._by_name[name] for name in line)

    def champion(self, model: str) -> Checkpoint | None:
        """The line's Checkpoint with the newest `status.promotedAt` that nobody has rejected or deleted."""
        line = self._lines.get(model)
        name = None if line is None else line.champion
        return None if name is None else self._by_name[name]

    def last_promotion(self, model: str) -> datetime | None:
        """The newest `status.promotedAt` of the line, whatever became of the Checkpoint since."""
        line = self._lines.get(model)
        return None if line is None else line.last_promotion

    def approved(self, model: str) -> tuple[str, ...]:
        """Names of the line's Checkpoints that a person has approved and that are not promoted."""
        line = self._lines.get(model)
        return () if line is None else tuple(line.approved)


class _Line:
    """The names of one line, and its promotions in order."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._promoted: list[tuple[datetime, str]] = []
        self._eligible: list[tuple[datetime, str]] = []
        self.approved: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @property
    def is_empty(self) -> bool:
        return not self._names

    @property
    def champion(self) -> str | None:
        return self._eligible[-1][1] if self._eligible else None

    @property
    def last_promotion(self) -> datetime | None:
        return self._promoted[-1][0] if self._promoted else None

    def add(self, checkpoint: Checkpoint) -> None:
        self._names[checkpoint.name] = None
        promoted_at = checkpoint.status.promoted_at
        if promoted_at is None:
            if is_approved(checkpoint):
                self.approved[checkpoint.name] = None
            return
        insort(self._promoted, (promoted_at, checkpoint.name))
        if not (is_rejected(checkpoint) or _is_going(checkpoint)):
            insort(self._eligible, (promoted_at, checkpoint.name))

    def discard(self, checkpoint: Checkpoint) -> None:
        del self._names[checkpoint.name]
        self.approved.pop(checkpoint.name, None)
        if checkpoint.status.promoted_at is None:
            return
        entry = (checkpoint.status.promoted_at, checkpoint.name)
        for entries in (self._promoted, self._eligible):
            place = bisect_left(entries, entry)
            if entries[place : place + 1] == [entry]:
                del entries[place]


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
    return index.champion(model)


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
    last = index.last_promotion(model)
    return now if last is None else max(now, last + timedelta(milliseconds=1))


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
