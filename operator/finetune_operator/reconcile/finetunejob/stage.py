# SPDX-License-Identifier: Apache-2.0
"""One stage of a run: its time limit, what its Jobs are built of, and the record of its end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, get_args

from finetune_operator.api.pod_resources import CPU, CUDA_RESOURCES
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.jobs import JobInputs
from finetune_operator.manifests.labels import stage_job_name, stage_object_name
from finetune_operator.manifests.pod_sizing import one_device_holds
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.observe.device_usage import stage_usage
from finetune_operator.reconcile.features.custom_metrics import build_stage_isolation, scored_folders
from finetune_operator.reconcile.features.peers import build_peer_objects, coordinator_host
from finetune_operator.reconcile.features.registry import evaluation_volumes
from finetune_operator.reconcile.finetunejob.prediction import start_note
from finetune_operator.reconcile.finetunejob.run import Prerequisites, RunPass, chosen_queueing
from finetune_operator.reconcile.inputs.device_use import SimilarRuns
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome, Working
from finetune_operator.reconcile.platform.profiles import device_facts, host_memory_bytes
from finetune_operator.reconcile.stages import runner
from finetune_operator.reconcile.stages.accounting import finish, has_finished, record
from finetune_operator.reconcile.stages.job_cleanup import stop
from finetune_operator.reconcile.stages.jobs import is_unfinished, pods_of, running_orphans, wait_until_ended
from finetune_operator.reconcile.stages.stage_request import (
    Outcome,
    StageFailed,
    StageOwner,
    StageRequest,
    StageSetting,
)
from finetune_operator.stage_table import STAGES, JobStage
from finetune_operator.status.conditions import find_condition
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_operator.status.stage_results import select_problems
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a stage of a run may use devices."""

    stage: Stage
    seconds: int
    advice: str
    """How to raise it."""


def limit_of(run: RunPass, stage: Stage) -> Limit | None:
    """The smaller of the run's own limit and its profile's."""
    own = run.job.spec.compute.max_run_seconds
    profile = run.snapshot.profiles.get(run.status.resolved.profile or "")
    offered = profile.spec.limits.run_seconds if profile is not None else None
    if own is not None and (offered is None or own <= offered):
        return Limit(stage, own, f"raise spec.compute.maxRunSeconds of FineTuneJob {run.job.name}")
    if profile is None or offered is None:
        return None
    return Limit(
        stage, offered, f"ask the platform team to raise limits.runSeconds of ComputeProfile {profile.name}"
    )


def stop_at_limit(run: RunPass, limit: Limit) -> PassOutcome | None:
    """Stop a stage that has used its time; None before that, and if the stage has ended by itself."""
    snapshot, name = run.snapshot, stage_job_name(run.job, limit.stage)
    job = snapshot.children[JOB].get(name)
    if _seconds_left(run, limit) > 0 or (job is not None and not is_unfinished(job)):
        return None
    pods = running_orphans(snapshot, name)
    if job is not None:
        stop(run, job)
        pods += pods_of(job, snapshot)
    if job is not None or pods:
        message = "the time limit of the run is reached; waiting for the pods to save their state and end"
        return wait_until_ended(pods, Reason.SUSPENDING, message, snapshot.now)
    last = run.status.progress
    where = f" at step {last.step} of {last.total_steps}" if last and last.stage == limit.stage else ""
    message = (
        f"{limit.stage} has used devices for {limit.seconds} seconds, and the operator stopped it{where} with"
        f" its state saved; to continue from there, {limit.advice}"
    )
    before = find_condition(run.job.status.conditions, ConditionType.STALLED)
    if before is None or before.reason != Reason.MAX_RUN_SECONDS_EXCEEDED:
        run.draft.event(EventReason.STAGE_FAILED, message, "Warning")
    return Failed(Reason.MAX_RUN_SECONDS_EXCEEDED, message)


def apply_time_limit(run: RunPass, limit: Limit, halt: PassOutcome) -> PassOutcome:
    """The same, with another pass when the time is used up."""
    if not isinstance(halt, Working | Blocked):
        return halt
    seconds = max(1.0, _seconds_left(run, limit))
    soonest = seconds if halt.requeue_after is None else min(halt.requeue_after, seconds)
    return replace(halt, requeue_after=soonest)


def _seconds_left(run: RunPass, limit: Limit) -> float:
    """Seconds that the stage may still use. What its pods use now is counted, but not written."""
    usage, stage = run.status.usage, limit.stage
    job = run.snapshot.children[JOB].get(stage_job_name(run.job, stage))
    if job is not None:
        usage = stage_usage(usage, stage, job, pods_of(job, run.snapshot), run.snapshot.now)
    used = usage.seconds if usage is not None and usage.name == stage else 0
    return limit.seconds - used


ConfigBuilder = Callable[[StageInputs], StageConfig | Blocked]
"""Builds the config of a stage."""


@dataclass(frozen=True, slots=True)
class _RunStage(StageOwner):
    """A stage of a run."""

    run: RunPass
    stage: Stage
    build_config: ConfigBuilder

    def setting(self, stage: JobStage) -> StageSetting | Blocked:
        found = self.run.prerequisites
        if isinstance(found, Blocked):
            return found
        return StageSetting(_inputs(self.run, found, self.stage), _job_inputs(self.run, found, stage))

    def config(self, inputs: StageInputs) -> StageConfig | Blocked:
        return self.build_config(inputs)

    def keep(self) -> None:
        found = self.run.prerequisites
        if not isinstance(found, Blocked):
            self.run.keep(found)

    def trial(self) -> Self | None:
        """In the first stage, the run takes the present image and store."""
        if self.run.has_run(self.stage):
            return None
        return replace(self, run=self.run.trial(begins_anew=not self.run.status.stages))

    def adopt(self, trial: Self) -> None:
        self.run.update(resolved=trial.run.status.resolved)


def nodes_of(run: RunPass, stage: JobStage) -> int:
    """Number of pods of the stage that run at once."""
    return run.job.spec.compute.nodes if STAGES[stage].multi_node else 1


def _devices_of(run: RunPass, found: Prerequisites, stage: JobStage) -> int:
    """Devices of each pod of the stage."""
    profile, prediction = found.profile_of(stage), run.status.prediction
    facts = device_facts(profile)
    holds = one_device_holds(
        prediction.weights_bytes if prediction is not None else None,
        facts.memory_bytes if facts is not None else None,
    )
    requested = min(run.job.spec.compute.devices, profile.spec.accelerator.max_per_pod)
    return STAGES[stage].devices_of(requested, one_holds_model=holds)


def _inputs(run: RunPass, found: Prerequisites, stage: Stage) -> StageInputs:
    secret = found.store.credentials_secret_ref
    devices = run.job.spec.compute.devices
    limits = (limit_of(run, each) for each in get_args(Stage) if STAGES[each].time_limit)
    on_cuda = found.profile_of(stage).spec.accelerator.resource.startswith(CUDA_RESOURCES)
    similar = SimilarRuns(found.profile.name, run.base_model_uri, run.job.spec.method.type)
    return StageInputs(
        owner=run.job,
        run=run.job.uid,
        store_uri=found.store.uri,
        store_credentials=secret.name if secret else None,
        report=run.snapshot.facts.report,
        contract_version=found.trainer.contract,
        accelerators=1 if found.profile.spec.accelerator.resource == CPU else devices,
        requested_accelerators=_devices_of(run, found, stage) if on_cuda else 0,
        device=device_facts(found.profile),
        host_memory_bytes=host_memory_bytes(found.profile),
        mfu=run.snapshot.calibrated_mfu(similar),
        max_run_seconds=next((limit.seconds for limit in limits if limit is not None), None),
        max_unpacked_bytes=found.profile.spec.limits.unpacked_bytes,
        coordinator=coordinator_host(run.job, stage) if nodes_of(run, stage) > 1 else None,
    )


def _job_inputs(run: RunPass, found: Prerequisites, stage: JobStage) -> JobInputs:
    nodes = nodes_of(run, stage)
    peers = stage_object_name(run.job, stage) if nodes > 1 else None
    return replace(
        run.snapshot.facts.job_inputs(found.trainer.image, found.profile_of(stage)),
        devices=_devices_of(run, found, stage),
        nodes=nodes,
        service=peers,
        peer_key=peers,
        prediction=run.status.prediction,
        chosen=chosen_queueing(run.job, stage),
        volumes=evaluation_volumes(stage, run.job.spec.evaluation),
        store=scored_folders(stage, found.store.uri, run.job.uid, run.measured_version.digest),
    )


def run_stage(run: RunPass, stage: Stage, build_config: ConfigBuilder) -> StageResult | PassOutcome:
    """The stage's result, or how the pass ends."""
    limit = limit_of(run, stage) if STAGES[stage].time_limit else None
    stopped = stop_at_limit(run, limit) if limit is not None else None
    if stopped is not None:
        return stopped
    ended = _recorded(run, stage, _run(run, stage, build_config))
    return (
        apply_time_limit(run, limit, ended)
        if limit is not None and not isinstance(ended, StageResult)
        else ended
    )


def _run(run: RunPass, stage: Stage, build_config: ConfigBuilder) -> Outcome:
    request = StageRequest(
        stage=stage,
        run=run.job.uid,
        names=run.job_names(stage),
        peers=build_peer_objects(run.job, stage, run.snapshot) if nodes_of(run, stage) > 1 else None,
        isolation=build_stage_isolation(run.job, stage),
        retry=run.status.retry,
        note=start_note(run) if STAGES[stage].time_limit else "",
    )
    return runner.run_stage(run.draft, request, _RunStage(run, stage, build_config))


def _recorded(run: RunPass, stage: Stage, outcome: Outcome) -> StageResult | PassOutcome:
    """The same, once the status has what happened."""
    if isinstance(outcome, StageResult) and has_finished(run, stage):
        return outcome
    recorded = record(run, stage, outcome)
    if isinstance(recorded, StageResult | StageFailed):
        finish(run, stage, recorded if isinstance(recorded, StageResult) else recorded.result)
    if not isinstance(recorded, StageFailed):
        return recorded
    prepared = recorded.result.prepare if recorded.result is not None else None
    if prepared is not None:
        run.update(problems=select_problems(prepared))
    run.draft.event(EventReason.STAGE_FAILED, f"{stage} failed: {recorded.message}", "Warning")
    return Failed(recorded.reason, recorded.message)
