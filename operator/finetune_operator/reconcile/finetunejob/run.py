"""One pass over a FineTuneJob: the status as it will be, beside what is to be done."""

from typing import Any, Literal

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejobstatus import CheckpointSummary
from finetune_operator.plan import Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.snapshot import Snapshot
from finetune_operator.reconcile.steps import Blocked, Done, Failed, Halt
from finetune_operator.status import conditions, progress
from finetune_operator.status.reasons import ConditionType, EventReason, Reason

SUCCEEDED = "Succeeded"


class Run:
    """Steps read and extend it; `plan` turns it into what the engine carries out."""

    def __init__(self, job: FineTuneJob, snapshot: Snapshot) -> None:
        self.job = job
        self.snapshot = snapshot
        self.status = job.status
        self.draft = Draft(snapshot)

    def update(self, **fields: Any) -> None:
        """Set fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def resolve(self, **fields: Any) -> None:
        """Set fields of `status.resolved` that are still open; what is resolved stays."""
        open_fields = {k: v for k, v in fields.items() if getattr(self.status.resolved, k) is None}
        if open_fields:
            self.update(resolved=self.status.resolved.model_copy(update=open_fields))

    def condition(
        self,
        type_: ConditionType,
        reason: str,
        message: str,
        status: Literal["True", "False"] = "True",
    ) -> None:
        """Set a condition of the domain."""
        self.update(
            conditions=conditions.with_condition(
                self.status.conditions,
                type_,
                status,
                reason,
                message,
                generation=self.job.metadata.generation,
                now=self.snapshot.now,
            )
        )

    def best_checkpoint(self) -> CheckpointSummary | None:
        """The one to judge and promote: the best by validation loss, else the last."""
        checkpoints = self.status.checkpoints
        marked = [c for c in checkpoints if c.best] or [c for c in checkpoints if c.final] or checkpoints
        return marked[-1] if marked else None

    def plan(self, halt: Halt) -> Plan:
        """The plan of a pass that ended so."""
        if isinstance(halt, Done):
            self._enter(ConditionType.READY, halt, SUCCEEDED)
        elif isinstance(halt, Failed):
            self._enter(ConditionType.STALLED, halt, conditions.FAILED)
        else:
            phase = conditions.BLOCKED if isinstance(halt, Blocked) else halt.reason
            if isinstance(halt, Blocked) and self._is_news(halt):
                self.draft.event(EventReason.BLOCKED, halt.message, "Warning")
            was_suspended = conditions.is_true(self.job.status.conditions, ConditionType.SUSPENDED)
            if was_suspended and not self.job.spec.suspend:
                self.draft.event(EventReason.RESUMED, "the run goes on where it was suspended")
            self._enter(ConditionType.RECONCILING, halt, phase)
        self._show("Done" if isinstance(halt, Done) else "Resting" if isinstance(halt, Failed) else "Running")
        status = conditions.status_manifest(self.status)
        return self.draft.plan(status, None if isinstance(halt, Done | Failed) else halt.requeue_after)

    def suspended(self, message: str) -> Plan:
        """The plan of a pass that found the run suspended, with nothing running."""
        if not conditions.is_true(self.job.status.conditions, ConditionType.SUSPENDED):
            self.draft.event(EventReason.SUSPENDED, message)
        halt = Done(Reason.SUSPENDED, message)
        self._enter(ConditionType.SUSPENDED, halt, "Suspended")
        self._show("Resting")
        return self.draft.plan(conditions.status_manifest(self.status))

    def _is_news(self, halt: Blocked) -> bool:
        before = conditions.find(self.job.status.conditions, ConditionType.RECONCILING)
        return before is None or before.reason != halt.reason

    def _show(self, state: Literal["Running", "Resting", "Done"]) -> None:
        if self.status.progress is not None or self.status.evaluation is not None:
            self.update(display=progress.display(self.status.progress, self.status.evaluation, state))

    def _enter(
        self,
        state: Literal[
            ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.SUSPENDED
        ],
        halt: Halt,
        phase: str,
    ) -> None:
        generation = self.job.metadata.generation
        self.update(
            observed_generation=generation,
            phase=phase,
            conditions=conditions.enter(
                self.status.conditions,
                state,
                halt.reason,
                halt.message,
                generation=generation,
                now=self.snapshot.now,
            ),
        )
