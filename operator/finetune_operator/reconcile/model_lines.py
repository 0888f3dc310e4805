# SPDX-License-Identifier: Apache-2.0
"""Model lines: their Checkpoints with scores, indexed by line, and their champions.

Scores of a Checkpoint are those of the run that made it, or those of a named Evaluation.
"""

import sys
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.evaluation import EvaluationStatus
from finetune_operator.api.evaluation_resource import Evaluation
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


OF_RUN: Final = "Run"
"""Source of the scores of the run that made the Checkpoint. No Evaluation can have this name."""


def is_of_run(entry: EvaluationStatus) -> bool:
    """Whether the run that made the Checkpoint measured it."""
    return entry.source == OF_RUN


def scores_of(checkpoint: Checkpoint, evaluation: str | None = None) -> EvaluationStatus | None:
    """The scores of the Checkpoint from the named Evaluation, or from its run."""
    return next(
        (
            each
            for each in checkpoint.status.evaluations
            if (is_of_run(each) if evaluation is None else each.source == evaluation)
        ),
        None,
    )


def is_resolved(evaluation: Evaluation, checkpoint: Checkpoint) -> bool:
    """Whether the Evaluation measures these weights, not earlier ones of a Checkpoint of the same name."""
    digests = evaluation.status.resolved.checkpoint_digests or ()
    resolved = dict(zip(evaluation.spec.checkpoints, digests, strict=False))
    return resolved.get(checkpoint.name, checkpoint.spec.digest) == checkpoint.spec.digest


LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Entry:
    """The fields of a Checkpoint that the index needs without loading it."""

    uid: str
    run: str
    model_line: str
    parent: str | None
    dataset_version: str
    judged_on: str | None
    """Digest of the DatasetVersion on whose test rows its run measured it."""
    recorded_at: datetime
    promoted_at: datetime | None
    is_terminating: bool
    can_be_champion: bool
    is_approved: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "_Entry":
        scores = scores_of(checkpoint)
        judged_on = None if scores is None else scores.dataset_digest
        return cls(
            uid=checkpoint.uid,
            run=sys.intern(checkpoint.spec.lineage.job.uid),
            model_line=sys.intern(checkpoint.spec.model_line),
            parent=checkpoint.spec.lineage.parent_checkpoint,
            dataset_version=sys.intern(checkpoint.spec.lineage.dataset_version),
            judged_on=None if judged_on is None else sys.intern(judged_on),
            recorded_at=recorded_at(checkpoint) or LONG_AGO,
            promoted_at=checkpoint.status.promoted_at,
            is_terminating=is_terminating(checkpoint),
            can_be_champion=not (is_rejected(checkpoint) or is_terminating(checkpoint)),
            is_approved=is_approved(checkpoint),
        )

    @property
    def origins(self) -> tuple[str, ...]:
        """Names of the records from which it was trained."""
        return (self.dataset_version,) if self.parent is None else (self.dataset_version, self.parent)


class CheckpointIndex:
    """The Checkpoints of one namespace by name, run and model line, updated one at a time.

    The cost of finding a line's champion or latest promotion does not grow with the line.

    Args:
        checkpoints: Checkpoints to start with.
        load: loads a Checkpoint of the index by name; None: the index keeps the Checkpoints itself.
    """

    def __init__(
        self,
        checkpoints: Iterable[Checkpoint] = (),
        load: Callable[[str], Checkpoint | None] | None = None,
    ) -> None:
        self._held: dict[str, Checkpoint] | None = {} if load is None else None
        self._load = self._held.get if self._held is not None else load
        self._entries: dict[str, _Entry] = {}
        self._by_run: dict[str, tuple[str, ...]] = {}
        self._lines: dict[str, _Line] = {}
        self._origins: Counter[str] = Counter()
        for checkpoint in checkpoints:
            self.put(checkpoint)

    def put(self, checkpoint: Checkpoint) -> None:
        """Add a Checkpoint, or replace the one with its name."""
        self.remove(checkpoint.name)
        if self._held is not None:
            self._held[checkpoint.name] = checkpoint
        entry = self._entries[checkpoint.name] = _Entry.of(checkpoint)
        self._by_run[entry.run] = (*self._by_run.get(entry.run, ()), checkpoint.name)
        self._lines.setdefault(entry.model_line, _Line()).add(checkpoint.name, entry)
        self._origins.update(entry.origins)

    def remove(self, name: str) -> None:
        """Remove the Checkpoint of this name, if there is one."""
        old = self._entries.pop(name, None)
        if old is None:
            return
        if self._held is not None:
            del self._held[name]
        for origin in old.origins:
            # Not with an operator of Counter, which walks over all origins.
            self._origins[origin] -= 1
            if not self._origins[origin]:
                del self._origins[origin]
        others = tuple(each for each in self._by_run[old.run] if each != name)
        if others:
            self._by_run[old.run] = others
        else:
            del self._by_run[old.run]
        self._lines[old.model_line].discard(name, old)
        if self._lines[old.model_line].is_empty:
            del self._lines[old.model_line]

    @property
    def is_empty(self) -> bool:
        return not self._entries

    def get(self, name: str) -> Checkpoint | None:
        if self._load is None or name not in self._entries:
            return None
        return self._load(name)

    def live(self, name: str) -> Checkpoint | None:
        """The Checkpoint of this name, unless it is being deleted: then its weights may already be gone."""
        checkpoint = self.get(name)
        return None if checkpoint is None or is_terminating(checkpoint) else checkpoint

    def of_run(self, uid: str) -> tuple[Checkpoint, ...]:
        """Checkpoints that the FineTuneJob with this uid made."""
        return self._all(self._by_run.get(uid, ()))

    def of_line(self, model_line: str) -> tuple[Checkpoint, ...]:
        """Checkpoints of this model line; loads all of them."""
        return self._all(self._lines.get(model_line, ()))

    def runs_judged_on(self, dataset_digest: str, model_line: str) -> set[str]:
        """UIDs of the runs of a model line that were measured on the test rows of this DatasetVersion."""
        entries = (self._entries[name] for name in self._lines.get(model_line, ()))
        return {entry.run for entry in entries if entry.judged_on == dataset_digest}

    def has_line(self, model_line: str) -> bool:
        """Whether a Checkpoint belongs to this model line."""
        return model_line in self._lines

    def line_of(self, name: str) -> str | None:
        """The model line of the Checkpoint of this name."""
        entry = self._entries.get(name)
        return None if entry is None else entry.model_line

    def is_origin(self, record: str) -> bool:
        """Whether a Checkpoint of the index was trained from the Checkpoint, or on the rows, of this name."""
        return record in self._origins

    def newer(self, name: str) -> int:
        """Number of Checkpoints of its line that were recorded after it and are not being deleted."""
        entry = self._entries.get(name)
        return 0 if entry is None else self._lines[entry.model_line].newer(name, entry)

    def champion(self, model_line: str, *, except_of: Container[str] = ()) -> Checkpoint | None:
        """The line's Checkpoint with the newest `status.promotedAt` that is not rejected or being deleted.

        Checkpoints of the runs with the uids `except_of` do not count.
        """
        line = self._lines.get(model_line)
        names = line.candidates if line is not None else iter(())
        name = next((each for each in names if self._entries[each].run not in except_of), None)
        return None if name is None else self.get(name)

    def champion_name(self, model_line: str) -> str | None:
        """Name of the line's champion."""
        identity = self.champion_identity(model_line)
        return None if identity is None else identity[0]

    def champion_identity(self, model_line: str) -> tuple[str, str] | None:
        """Name and uid of the line's champion."""
        line = self._lines.get(model_line)
        name = None if line is None else line.champion
        return None if name is None else (name, self._entries[name].uid)

    def last_promotion(self, model_line: str) -> datetime | None:
        """The newest `status.promotedAt` of the line, also if its Checkpoint was rejected later."""
        line = self._lines.get(model_line)
        return None if line is None else line.last_promotion

    def promotion_time(self, model_line: str, now: datetime) -> datetime:
        """A time for `promotedAt` that is newer than any other of the line, even if clocks differ."""
        last = self.last_promotion(model_line)
        return now if last is None else max(now, last + timedelta(milliseconds=1))

    def approved(self, model_line: str) -> tuple[str, ...]:
        """Names of the line's Checkpoints that are approved and not promoted."""
        line = self._lines.get(model_line)
        return () if line is None else tuple(line.approved)

    def _all(self, names: Iterable[str]) -> tuple[Checkpoint, ...]:
        return tuple(checkpoint for name in names if (checkpoint := self.get(name)) is not None)


class _Line:
    """The Checkpoint names of one line, and its promotions in order."""

    __slots__ = ("_eligible", "_names", "_promoted", "_recorded", "approved")

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._recorded: list[tuple[datetime, str]] = []
        self._promoted: list[tuple[datetime, str]] = []
        self._eligible: list[tuple[datetime, str]] = []
        self.approved: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @property
    def is_empty(self) -> bool:
        return not self._names

    @property
    def candidates(self) -> Iterator[str]:
        """Promoted Checkpoints that can be the champion, the newest promotion first."""
        return (name for _, name in reversed(self._eligible))

    @property
    def champion(self) -> str | None:
        return next(self.candidates, None)

    @property
    def last_promotion(self) -> datetime | None:
        return self._promoted[-1][0] if self._promoted else None

    def add(self, name: str, entry: _Entry) -> None:
        self._names[name] = None
        if not entry.is_terminating:
            insort(self._recorded, (entry.recorded_at, name))
        if entry.promoted_at is None:
            if entry.is_approved:
                self.approved[name] = None
            return
        insort(self._promoted, (entry.promoted_at, name))
        if entry.can_be_champion:
            insort(self._eligible, (entry.promoted_at, name))

    def discard(self, name: str, entry: _Entry) -> None:
        del self._names[name]
        self.approved.pop(name, None)
        _discard(self._recorded, (entry.recorded_at, name))
        if entry.promoted_at is not None:
            for entries in (self._promoted, self._eligible):
                _discard(entries, (entry.promoted_at, name))

    def newer(self, name: str, entry: _Entry) -> int:
        return len(self._recorded) - bisect_right(self._recorded, (entry.recorded_at, name))


def _discard(entries: list[tuple[datetime, str]], entry: tuple[datetime, str]) -> None:
    """Remove the entry from a sorted list, if it is there."""
    position = bisect_left(entries, entry)
    if entries[position : position + 1] == [entry]:
        del entries[position]
