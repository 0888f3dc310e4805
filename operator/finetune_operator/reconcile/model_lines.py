# SPDX-License-Identifier: Apache-2.0
"""Model lines: their Checkpoints with scores, their champions, and the rule that promotes a Checkpoint.

A run ends with `decide_end_of_run`. The Checkpoint's reconciler, which alone writes `promotedAt`
(decision 3), uses `decide_promotion`, which also considers the approval or rejection by a person. Scores of a
Checkpoint are those of the run that made it, or those of a named Evaluation.
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
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.manifests.labels import NEVER_PROMOTED, RECORDED_AT
from finetune_operator.reconcile.verdicts import find_vetoes, verdict_text
from finetune_operator.status.conditions import find_condition, is_cancelled, is_finished
from finetune_operator.status.reasons import ConditionType, Reason


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
    recorded_at: datetime
    promoted_at: datetime | None
    is_terminating: bool
    can_be_champion: bool
    is_approved: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "_Entry":
        return cls(
            uid=checkpoint.uid,
            run=sys.intern(checkpoint.spec.lineage.job.uid),
            model_line=sys.intern(checkpoint.spec.model_line),
            parent=checkpoint.spec.lineage.parent_checkpoint,
            dataset_version=sys.intern(checkpoint.spec.lineage.dataset_version),
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


READ: Final = ". Read the worst answers (status.evaluation.reportUri of the run). "
APPROVE: Final = "To promote it anyway, set spec.approval.state of the Checkpoint to Approved; to"
TRY_AGAIN: Final = " try again, create a FineTuneJob with another name"


@dataclass(frozen=True, slots=True)
class Decision:
    """The promotion decision on a Checkpoint; its reason is `Promoted` if the Checkpoint is promoted."""

    reason: Reason
    message: str
    """About the Checkpoint, without its name."""


def decide_promotion(checkpoint: Checkpoint, job: FineTuneJob | None, index: CheckpointIndex) -> Decision:
    """Decide whether the Checkpoint is promoted. `job` is the run that made it, None if it no longer exists.

    A rejection has priority and also withdraws a promotion. A promotion that is not withdrawn stays. Nothing
    promotes a Checkpoint of a run with `promotion.mode: Never`, also after the run is gone. In other cases
    the run decides; if the run does not promote, an approval does.
    """
    line, approval = checkpoint.spec.model_line, checkpoint.spec.approval
    if approval is not None and is_rejected(checkpoint):
        return Decision(Reason.REJECTED, f"rejected: {approval.reason or 'no reason given'}")
    if checkpoint.status.promoted_at is not None:
        # The condition keeps the reason for the promotion.
        known = find_condition(checkpoint.status.conditions, ConditionType.PROMOTED)
        if known is not None and known.reason == Reason.PROMOTED:
            return Decision(Reason.PROMOTED, known.message)
        return Decision(Reason.PROMOTED, f"promoted in model line {line}")
    if never_promoted(checkpoint):
        return Decision(
            Reason.PROMOTION_DISABLED,
            f"promotion.mode of FineTuneJob {checkpoint.spec.lineage.job.name} is Never, so an approval does"
            " not promote it either: to serve it, pin it in an InferenceDeployment; to promote such a"
            " Checkpoint, create a FineTuneJob with another promotion.mode",
        )
    decision = _by_run(checkpoint, job, index.champion_name(line))
    # If the run promotes, or will, the approval changes nothing.
    if is_approved(checkpoint) and decision.reason not in {Reason.PROMOTED, Reason.PROMOTING}:
        return _by_approval(checkpoint, index.champion(line))
    return decision


def decide_end_of_run(
    job: FineTuneJob, evaluation: EvaluationStatus | None, current_champion: str | None
) -> Decision:
    """The decision of a run on the Checkpoint that it evaluated, by its evaluation and `spec.promotion`.

    `current_champion` is the name of the line's champion. If the evaluation names another one, the reason is
    `Promoting`.
    """
    if evaluation is None:
        if is_finished(job):
            message = f"FineTuneJob {job.name} ended without an evaluation: approve it by hand"
            return Decision(Reason.NOT_PROMOTED, message)
        return Decision(Reason.EVALUATING, f"FineTuneJob {job.name} has not evaluated it yet")
    gates, mode = "; ".join(gate.message for gate in evaluation.gates), job.spec.promotion.mode
    next_step = f"{READ}To{TRY_AGAIN}" if mode == "Never" else f"{READ}{APPROVE}{TRY_AGAIN}"
    if find_vetoes(evaluation):
        return Decision(Reason.VETOED, verdict_text(evaluation))
    if evaluation.verdict == "Failed":
        return Decision(Reason.GATE_FAILED, f"{gates}{next_step}")
    if evaluation.reason == Reason.CHAMPION_KEEPS_CHANGING:
        approve = "" if mode == "Never" else " set spec.approval of the Checkpoint to promote it, or"
        message = (
            "the champion of the model line changed each time that the run had been compared with it:"
            f"{approve} create a new FineTuneJob. {gates}"
        )
        return Decision(Reason.CHAMPION_KEEPS_CHANGING, message)
    if evaluation.verdict not in {"Passed", "NoGates"}:
        # A verdict that only a newer release knows promotes nothing either.
        return Decision(Reason.EVALUATION_UNDECIDED, f"{gates}{next_step}")
    if mode == "Never":
        message = f"promotion.mode is Never, which an approval does not change: {gates or 'no gates'}"
        return Decision(Reason.PROMOTION_DISABLED, message)
    if mode == "Manual":
        message = "set spec.approval.state of the Checkpoint to Approved to promote it"
        return Decision(Reason.AWAITING_APPROVAL, message)
    if evaluation.verdict == "NoGates" and mode != "Always":
        return Decision(
            Reason.NOT_PROMOTED,
            "the run has no gates: set spec.approval.state of the Checkpoint to Approved to promote it, or"
            " add evaluation.gates or promotion.mode: Always to the next run",
        )
    if evaluation.champion != current_champion:
        if is_finished(job):
            message = f"the champion has changed since FineTuneJob {job.name} ended: approve it by hand"
            return Decision(Reason.NOT_PROMOTED, message)
        against = current_champion or "none"
        return Decision(Reason.PROMOTING, f"to be compared with the current champion first: {against}")
    return Decision(
        Reason.PROMOTED, f"promoted in model line {job.spec.model_line}: {gates or 'without evaluation'}"
    )


def _by_run(checkpoint: Checkpoint, job: FineTuneJob | None, current_champion: str | None) -> Decision:
    if job is None:
        gone = checkpoint.spec.lineage.job.name
        message = f"its FineTuneJob {gone} does not exist: set spec.approval to promote it"
        return Decision(Reason.NOT_PROMOTED, message)
    evaluation = job.status.evaluation
    if evaluation is not None and evaluation.checkpoint != checkpoint.name:
        message = f"the run evaluated its better checkpoint {evaluation.checkpoint}"
        return Decision(Reason.NOT_PROMOTED, message)
    if evaluation is not None and is_cancelled(job):
        message = f"FineTuneJob {job.name} was cancelled: set spec.approval of the Checkpoint to promote it"
        return Decision(Reason.NOT_PROMOTED, message)
    return decide_end_of_run(job, evaluation, current_champion)


def _by_approval(checkpoint: Checkpoint, best: Checkpoint | None) -> Decision:
    line = checkpoint.spec.model_line
    if best is None or not is_older(checkpoint, best):
        return Decision(Reason.PROMOTED, f"approved, and promoted in model line {line}")
    return Decision(
        Reason.NOT_PROMOTED,
        f"approved, but {best.name}, which is newer, is the champion of {line}: to serve this one, pin it in"
        " an InferenceDeployment",
    )
