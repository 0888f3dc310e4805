# SPDX-License-Identifier: Apache-2.0
"""One pass over a FineTuneJob: its new status and its draft."""

from collections.abc import Mapping
from functools import cached_property
from typing import Final, Literal, NamedTuple

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_job_status import FineTuneJobStatus
from finetune_operator.plan import Plan
from finetune_operator.reconcile.finetunejob.prerequisites import Prerequisites, resolve
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.kstatus import finish_pass
from finetune_operator.reconcile.stages.losses import lose_stage, total_losses
from finetune_operator.reconcile.stages.request import JobNames
from finetune_operator.reconcile.stages.stagepass import StagePass
from finetune_operator.reconcile.steps import Blocked, Done, Failed, Halt, Suspended, Working
from finetune_operator.stage_table import STAGES
from finetune_operator.status import conditions, prediction, progress
from finetune_operator.status.conditions import ends_run
from finetune_operator.status.progress import evaluation_table
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import Stage

SHOWN_AS: Final[Mapping[type, Literal["Running", "Resting", "Done"]]] = {
    Done: "Done",
    Failed: "Resting",
    Suspended: "Resting",
}
"""How `kubectl get` shows progress after the end of a pass; `Running` for other ends."""


class MeasuredVersion(NamedTuple):
    """The DatasetVersion that a run is evaluated on."""

    name: str | None
    digest: str | None


class Run(StagePass[FineTuneJobStatus]):
    """The steps read and extend it; `plan` turns it into the plan that the executor carries out."""

    def __init__(self, job: FineTuneJob, snapshot: Snapshot) -> None:
        super().__init__(job.status, job.metadata.generation, snapshot)
        self.job = job

    @cached_property
    def prerequisites(self) -> Prerequisites | Blocked:
        """The prerequisites of stages, or what is missing; resolved at most once in a pass."""
        return resolve(self.job, self.snapshot)

    @property
    def measured_version(self) -> MeasuredVersion:
        """The version of `evaluation.dataset`, or that of the training rows."""
        resolved = self.status.resolved
        if resolved.evaluation_dataset_version is not None:
            return MeasuredVersion(resolved.evaluation_dataset_version, resolved.evaluation_dataset_digest)
        return MeasuredVersion(resolved.dataset_version, resolved.dataset_digest)

    def keep(self, found: Prerequisites) -> None:
        """Record the profile, store and image that the run begins with; later stages use the same ones."""
        secret = found.store.credentials_secret_ref
        self.resolve(
            profile=found.profile.name,
            profile_generation=found.profile.metadata.generation,
            store=found.store.uri,
            store_credentials=secret.name if secret else None,
            trainer_image=found.trainer.image,
            trainer_contract=found.trainer.contract,
        )

    def trial(self, *, begins_anew: bool) -> "Run":
        """Another pass from the present status, to see which Job it would create.

        Args:
            begins_anew: whether the store and the image are forgotten, which that Job then decides.
        """
        fields = ("profile_generation", "store", "store_credentials", "trainer_image", "trainer_contract")
        forgotten = dict.fromkeys(fields if begins_anew else ())
        resolved = self.status.resolved.model_copy(update=forgotten)
        status = self.status.model_copy(update={"resolved": resolved})
        return Run(self.job.model_copy(update={"status": status}), self.snapshot)

    def job_names(self, stage: Stage) -> JobNames:
        """Names of the stage's Jobs."""
        live = self.status.live if STAGES[stage].per_champion else None
        champion = () if live is None or live.digest is None else (live.digest,)
        return JobNames.of(self.job, stage, *champion)

    def succeed(self, stage: Stage, message: str, steps: int = 0) -> None:
        """Complete the stage's progress, and set the condition that its row names."""
        self.update(progress=progress.completed(self.status.progress, stage, steps))
        type_ = STAGES[stage].condition
        if type_ is not None:
            self.condition(type_, Reason.SUCCEEDED, message)

    def plan(self, halt: Halt) -> Plan:
        """The plan of a pass that ends with `halt`."""
        was_suspended = conditions.is_true(self.job.status.conditions, ConditionType.SUSPENDED)
        goes_on = isinstance(halt, Working | Blocked) and halt.reason != Reason.CANCELLING
        if was_suspended and not self.job.spec.suspend and goes_on:
            self.draft.event(EventReason.RESUMED, "the run resumes from its saved state")
        self._count_losses(halt)
        self._show(halt)
        result = finish_pass(self.job, self.status, halt, self.snapshot.now)
        self.draft.events += result.events
        return self.draft.plan(result.manifest, result.requeue_after)

    def _count_losses(self, halt: Halt) -> None:
        """A run that fails for good has lost the time of the stages without a recorded result."""
        if isinstance(halt, Failed) and ends_run(ConditionType.STALLED, "True", halt.reason):
            for times in self.status.stages:
                condition = STAGES[times.name].condition
                if condition is None or not conditions.is_true(self.status.conditions, condition):
                    lose_stage(self, times.name, halt.reason)
        total_losses(self)

    def _show(self, halt: Halt) -> None:
        if self.status.progress is None and self.status.evaluation is None:
            return
        state = SHOWN_AS.get(type(halt), "Running")
        display = progress.display(self.status.progress, self.status.evaluation, state)
        table = evaluation_table(self.status.evaluation) or None
        columns = {**prediction.columns(self.status.prediction), "evaluation": table}
        self.update(display=display.model_copy(update=columns))
