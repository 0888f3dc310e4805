# SPDX-License-Identifier: Apache-2.0
"""What kinds and runner share: a stage that should have a result, its owner, its result, and a pass."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Literal, Self, TypeVar

from finetune_operator.api.evaluation_resource import EvaluationResourceStatus
from finetune_operator.api.finetune_job_status import FineTuneJobStatus
from finetune_operator.api.meta import Resource
from finetune_operator.api.stage_status import RetryStatus
from finetune_operator.manifests.jobs import JobInputs
from finetune_operator.manifests.labels import stage_job_name
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, Failed, PlanBuilder, Working
from finetune_operator.reconcile.stages.jobs import Expected
from finetune_operator.reconcile.stages.retries import Retry
from finetune_operator.stage_table import STAGES, JobStage, StageRow
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage

JobPurpose = Literal["stage", "collect", "probe"]
"""What a Job of a stage is for: to run it, to read its result from the store, or to check the store."""


@dataclass(frozen=True, slots=True)
class JobNames:
    """Names of the Jobs of one stage."""

    stage: str
    collect: str
    """The Job that reads the stage's result from the store if the pod that had it is gone."""
    probe: str
    """The Job that checks the store without devices before a stage with devices is retried."""

    @classmethod
    def of(cls, owner: Resource, stage: Stage, *distinguish: str, suffix: str = "") -> "JobNames":
        """Names that are equal for the same owner and stage; `distinguish` enters their hashes."""
        return cls(
            stage_job_name(owner, stage, *distinguish) + suffix,
            stage_job_name(owner, "collect", stage, *distinguish) + suffix,
            stage_job_name(owner, "collect", stage, *distinguish, "probe") + suffix,
        )

    def of_purpose(self, purpose: JobPurpose) -> str:
        return {"stage": self.stage, "collect": self.collect, "probe": self.probe}[purpose]


@dataclass(frozen=True, slots=True)
class PeerObjects:
    """Objects with which the pods of one stage find and trust each other."""

    service: Manifest
    policy: Manifest
    """The Service and the NetworkPolicy exist before the Job, and as long as it has pods."""
    key: Manifest
    """The Secret is created with the Job. The operator cannot read it, and one that exists stays as it is."""


@dataclass(frozen=True, slots=True)
class StageRequest:
    """A stage that should have a result."""

    stage: Stage
    run: str
    """Folder of its results in the store."""
    names: JobNames
    peers: PeerObjects | None = None
    """Set if the stage has several pods."""
    isolation: Manifest | None = None
    """NetworkPolicy that exists before the Job of a stage that runs code of a user."""
    retry: RetryStatus | None = None
    """Consecutive failures so far, from the status."""
    note: str = ""
    """What the event about its start says after the name of the Job."""

    @property
    def row(self) -> StageRow:
        return STAGES[self.stage]

    @property
    def expected(self) -> Expected:
        """What its result must repeat."""
        return Expected(self.run, self.stage)


@dataclass(frozen=True, slots=True)
class StageFailed:
    """The stage failed, and the operator does not retry it."""

    reason: str
    message: str
    result: StageResult | None


Outcome = StageResult | Working | Blocked | Failed | Retry | StageFailed
"""The stage's result, or how the pass ends."""


def fail_without_result(stage: Stage) -> Failed:
    """The end of an object whose stage succeeded without reporting what it made."""
    return Failed(
        Reason.RESULT_LOST,
        f"{stage} reports success but not what it made: check that the trainer image belongs to this release",
    )


BuiltJob = Manifest | Blocked | Failed | Working
"""A Job to create, or why it cannot be created now."""


@dataclass(frozen=True, slots=True)
class StageSetting:
    """What the Job of a stage is built of, besides its config."""

    config: StageInputs
    job: JobInputs


class StageOwner(ABC):
    """The object for which the runner runs a stage."""

    @abstractmethod
    def setting(self, stage: JobStage) -> StageSetting | Blocked | Failed:
        """What a Job is built of, or which prerequisite is missing.

        Args:
            stage: the stage of the request, or collect, which reads its result.
        """

    @abstractmethod
    def config(self, inputs: StageInputs) -> StageConfig | Blocked | Failed:
        """The config of the stage of the request."""

    @abstractmethod
    def keep(self) -> None:
        """Record what the first Job decides for later ones."""

    @abstractmethod
    def trial(self) -> Self | None:
        """The owner as it would begin the stage now; None once a pod of the stage has run."""

    @abstractmethod
    def adopt(self, trial: Self) -> None:
        """Take over what a new Job decides, as `trial` has recorded it."""


S = TypeVar("S", FineTuneJobStatus, EvaluationResourceStatus)


class StagePass(ABC, Generic[S]):
    """A pass over an object whose stages use devices: what its steps read and extend."""

    def __init__(self, status: S, generation: int, snapshot: Snapshot) -> None:
        """`generation` is that of the object, for its conditions."""
        self.status: S = status
        self.snapshot = snapshot
        self.draft = PlanBuilder(snapshot)
        self._generation = generation

    @abstractmethod
    def job_names(self, stage: Stage) -> JobNames:
        """Names of the stage's Jobs."""

    def has_run(self, stage: Stage) -> bool:
        """Whether a pod of the stage has run, by what the status recorded of it.

        A pod that was evicted is gone from the API, and a Job does not count it.
        """
        status = self.status
        usage, progress = status.usage, status.progress
        return (
            status.retry is not None
            or (usage is not None and usage.name == stage)
            or (progress is not None and progress.stage == stage and progress.total_steps > 0)
            or any(each.name == stage for each in status.stages)
        )

    def update(self, **fields: Any) -> None:
        """Set fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def resolve(self, **fields: Any) -> None:
        """Set the fields of `status.resolved` that are not set yet; the others keep their values."""
        resolved = self.status.resolved
        open_fields = {name: value for name, value in fields.items() if getattr(resolved, name) is None}
        if open_fields:
            self.update(resolved=resolved.model_copy(update=open_fields))

    def condition(
        self, type_: ConditionType, reason: str, message: str, status: Literal["True", "False"] = "True"
    ) -> None:
        """Set a condition that is not one of the kstatus conditions."""
        self.update(
            conditions=conditions.set_condition(
                self.status.conditions,
                type_,
                status,
                reason,
                message,
                generation=self._generation,
                now=self.snapshot.now,
            )
        )
