# SPDX-License-Identifier: Apache-2.0
"""The context of one pass over a FineTuneJob: what its stages need, its new status, and the plan so far.

A stage needs profiles, a store, claims and a trainer image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

from finetune_operator.api.compute import NO_CHOICE, QueueChoice
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_job_status import FineTuneJobStatus, Resolved
from finetune_operator.api.meta import SecretReference
from finetune_operator.api.references import StoreReference
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.trainer_config import TrainerImage, choose_trainer
from finetune_operator.plan import Plan
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import (
    Blocked,
    Done,
    Failed,
    PassOutcome,
    Suspended,
    Working,
    finish_pass,
)
from finetune_operator.reconcile.platform import profiles, queues, storage
from finetune_operator.reconcile.records.content_removal import has_finalizer
from finetune_operator.reconcile.stages.accounting import lose_stage, total_losses
from finetune_operator.reconcile.stages.jobs import has_result, is_stage_running
from finetune_operator.reconcile.stages.stage_request import JobNames, StagePass
from finetune_operator.stage_table import STAGES, JobStage, select_stages
from finetune_operator.status import conditions, prediction, progress
from finetune_operator.status.conditions import ends_run, is_finished
from finetune_operator.status.progress import evaluation_table
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import FailureReason, Stage


@dataclass(frozen=True, slots=True)
class Prerequisites:
    """Everything exists; the trainer and the store remain those of the first stage."""

    profile: ComputeProfile
    evaluate_profile: ComputeProfile
    store: StoreReference
    trainer: TrainerImage

    def profile_of(self, stage: JobStage) -> ComputeProfile:
        """The profile of the stage's pods."""
        return self.evaluate_profile if STAGES[stage].profile == "evaluation" else self.profile


def needs(job: FineTuneJob, snapshot: Snapshot) -> Needs:
    """Claims and queues to look up: none while a stage runs, because the pass creates nothing then.

    For a run that is being deleted: the claim with its folder. For each unfinished one: the namespace, if its
    labels decide about its profiles, or, when it has trained, about those that advice may name.
    """
    if job.metadata.deletion_timestamp is not None:
        return storage.claims_of(job.status.resolved.store) if has_finalizer(job) else NOTHING
    if is_finished(job):
        return NOTHING
    advised = snapshot.profiles if _awaits_advice(job, snapshot) else ()
    names = (_profile_name(job), *filter(None, [_evaluate_profile_name(job)]), *advised)
    labels = profiles.label_needs(names, job.namespace, snapshot)
    if job.spec.suspend or job.spec.cancel or is_stage_running(snapshot):
        return labels
    profile = _profile(job, snapshot, profiles.named_profile)
    store = None if isinstance(profile, Blocked) else _store(job, profile)
    store_uri = store.uri if isinstance(store, StoreReference) else job.status.resolved.store
    claims = storage.claims_of(store_uri, *(uri for _, uri, _ in inputs_of(job)))
    if isinstance(profile, Blocked):
        return queues.merge_needs(claims, labels)
    evaluate_profile = _evaluate_profile(job, profile, snapshot, profiles.named_profile)
    queued = queues.queue_needs(_queues(job, profile, evaluate_profile))
    return queues.merge_needs(claims, labels, queued)


def _awaits_advice(job: FineTuneJob, snapshot: Snapshot) -> bool:
    """Whether a stage has ended, and what training measured is not in the status yet."""
    has_ended = any(has_result(each) for each in snapshot.children[JOB].values())
    return job.status.training is None and has_ended and not is_stage_running(snapshot)


def _queues(
    job: FineTuneJob, profile: ComputeProfile, evaluate_profile: ComputeProfile | Blocked
) -> queues.Queues:
    """The queues of the run's stages."""
    found = queues.queues_of(profile, select_stages("compute"), job.spec.compute)
    if job.spec.evaluation is None:
        return found
    stages = select_stages("evaluation")
    return {**found, **queues.queues_of(evaluate_profile, stages, chosen_queueing(job, stages[0]))}


def chosen_queueing(job: FineTuneJob, stage: JobStage) -> QueueChoice:
    """The queue and priority that the run chooses for a stage: none where the stage has its own profile."""
    has_own_profile = job.spec.evaluation is not None and job.spec.evaluation.profile is not None
    return NO_CHOICE if STAGES[stage].profile == "evaluation" and has_own_profile else job.spec.compute


def inputs_of(job: FineTuneJob) -> tuple[tuple[str, str, str], ...]:
    """What the run has yet to read, besides its store: field, uri, and the reason if it does not exist."""
    inputs = []
    source, base_model = job.spec.dataset.source, job.spec.base_model.uri
    if source is not None and job.status.resolved.dataset_version is None:
        inputs.append(("spec.dataset.source.uri", source.uri, Reason.SOURCE_NOT_FOUND.value))
    if base_model is not None and job.status.resolved.hyperparameters is None:
        inputs.append(("spec.baseModel.uri", base_model, FailureReason.BASE_MODEL_NOT_FOUND.value))
    return tuple(inputs)


def resolve(job: FineTuneJob, snapshot: Snapshot) -> Prerequisites | Blocked:
    """The prerequisites of the run's next stage, or what is missing."""
    profile = _profile(job, snapshot)
    if isinstance(profile, Blocked):
        return profile
    too_many = profiles.check_devices(profile, job.spec.compute.devices, "spec.compute.devices")
    too_many = too_many or profiles.check_nodes(profile, job.spec.compute.nodes, "spec.compute.nodes")
    refused = too_many or queues.check_choice(profile, job.spec.compute)
    if refused is not None:
        return refused
    evaluate_profile = _evaluate_profile(job, profile, snapshot)
    if isinstance(evaluate_profile, Blocked):
        return evaluate_profile
    refused = profiles.check_engine_arguments(
        job.spec.evaluation, evaluate_profile, "spec.evaluation.extraEngineArguments"
    )
    if refused is not None:
        return refused
    store = _store(job, profile)
    if isinstance(store, Blocked):
        return store
    missing = _missing_claim(job, store, profile, snapshot) or queues.check_queues(
        _queues(job, profile, evaluate_profile), job.namespace, snapshot
    )
    if missing is not None:
        return missing
    trainer = _kept_trainer(job.status.resolved)
    if trainer is None:
        unknown = profiles.check_trainer(profile)
        if unknown is not None:
            return unknown
        trainer = choose_trainer(profile, snapshot.facts.trainer_image)
    return Prerequisites(profile, evaluate_profile, store, trainer)


def _kept_trainer(resolved: Resolved) -> TrainerImage | None:
    """The trainer of the first stage."""
    image, contract = resolved.trainer_image, resolved.trainer_contract
    return None if image is None or contract is None else TrainerImage(image, contract)


def _profile_name(job: FineTuneJob) -> str | None:
    return job.status.resolved.profile or job.spec.compute.profile


def _evaluate_profile_name(job: FineTuneJob) -> str | None:
    return None if job.spec.evaluation is None else job.spec.evaluation.profile


def _profile(
    job: FineTuneJob, snapshot: Snapshot, find: profiles.FindProfile = profiles.resolve_profile
) -> ComputeProfile | Blocked:
    return find(_profile_name(job), "spec.compute.profile", job.namespace, snapshot)


def _evaluate_profile(
    job: FineTuneJob,
    profile: ComputeProfile,
    snapshot: Snapshot,
    find: profiles.FindProfile = profiles.resolve_profile,
) -> ComputeProfile | Blocked:
    name = _evaluate_profile_name(job)
    return profile if name is None else find(name, "spec.evaluation.profile", job.namespace, snapshot)


def _store(job: FineTuneJob, profile: ComputeProfile) -> StoreReference | Blocked:
    """The store. Once it is resolved, a profile that changes its store does not move the run."""
    store = profiles.resolve_store(job.spec.store, profile, job.namespace)
    kept, secret = job.status.resolved.store, job.status.resolved.store_credentials
    if kept is None or (isinstance(store, StoreReference) and store.uri == kept):
        return store
    return StoreReference(uri=kept, credentials_secret_ref=SecretReference(name=secret) if secret else None)


def _missing_claim(
    job: FineTuneJob, store: StoreReference, profile: ComputeProfile, snapshot: Snapshot
) -> Blocked | None:
    blocked = storage.check_store(store.uri, profile, job.namespace, snapshot)
    for field, uri, reason in inputs_of(job):
        blocked = blocked or storage.check_claim(uri, field, reason, job.namespace, snapshot)
    return blocked


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


class RunPass(StagePass[FineTuneJobStatus]):
    """The steps read and extend it; `plan` turns it into the plan that the executor carries out."""

    def __init__(self, job: FineTuneJob, snapshot: Snapshot) -> None:
        super().__init__(job.status, job.metadata.generation, snapshot)
        self.job = job

    @cached_property
    def prerequisites(self) -> Prerequisites | Blocked:
        """The prerequisites of stages, or what is missing; resolved at most once in a pass."""
        return resolve(self.job, self.snapshot)

    @property
    def base_model_uri(self) -> str:
        """Source of the base model: of the Checkpoint that the run continues from, or that of the spec."""
        return self.status.resolved.base_model_uri or self.job.spec.base_model.uri or ""

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

    def trial(self, *, begins_anew: bool) -> "RunPass":
        """Another pass from the present status, to see which Job it would create.

        Args:
            begins_anew: whether the store and the image are forgotten, which that Job then decides.
        """
        fields = ("profile_generation", "store", "store_credentials", "trainer_image", "trainer_contract")
        forgotten = dict.fromkeys(fields if begins_anew else ())
        resolved = self.status.resolved.model_copy(update=forgotten)
        status = self.status.model_copy(update={"resolved": resolved})
        return RunPass(self.job.model_copy(update={"status": status}), self.snapshot)

    def job_names(self, stage: Stage) -> JobNames:
        """Names of the stage's Jobs."""
        live = self.status.live if STAGES[stage].per_champion else None
        champion = () if live is None or live.digest is None else (live.digest,)
        return JobNames.of(self.job, stage, *champion)

    def succeed(self, stage: Stage, message: str, steps: int = 0) -> None:
        """Complete the stage's progress, and set the condition that its row names."""
        self.update(progress=progress.complete_stage(self.status.progress, stage, steps))
        type_ = STAGES[stage].condition
        if type_ is not None:
            self.condition(type_, Reason.SUCCEEDED, message)

    def plan(self, halt: PassOutcome) -> Plan:
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

    def _count_losses(self, halt: PassOutcome) -> None:
        """A run that fails for good has lost the time of the stages without a recorded result."""
        if isinstance(halt, Failed) and ends_run(ConditionType.STALLED, "True", halt.reason):
            for times in self.status.stages:
                condition = STAGES[times.name].condition
                if condition is None or not conditions.is_true(self.status.conditions, condition):
                    lose_stage(self, times.name, halt.reason)
        total_losses(self)

    def _show(self, halt: PassOutcome) -> None:
        if self.status.progress is None and self.status.evaluation is None:
            return
        state = SHOWN_AS.get(type(halt), "Running")
        display = progress.display(self.status.progress, self.status.evaluation, state)
        table = evaluation_table(self.status.evaluation) or None
        columns = {**prediction.columns(self.status.prediction), "evaluation": table}
        self.update(display=display.model_copy(update=columns))
