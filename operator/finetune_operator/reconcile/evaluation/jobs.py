# SPDX-License-Identifier: Apache-2.0
"""Build the Jobs that measure one Checkpoint: evaluate, and score for custom metrics."""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.meta import SecretReference
from finetune_operator.api.pod_resources import CUDA_RESOURCES
from finetune_operator.manifests.configs import MeasuredData, collect_config, evaluate_config, score_config
from finetune_operator.manifests.jobs import CredentialsMount, Placement, Storage, build_stage_job
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.manifests.volumes import parse_store
from finetune_operator.manifests.weights import EvaluatedWeights, WeightsReference
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.evaluation.assessment import Assessment
from finetune_operator.reconcile.measuring import (
    SCORE,
    EvaluationMounts,
    check_custom_metrics,
    live_adapter,
    live_model,
    measured_data,
    scored_folders,
)
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.platform.budgets import check_budget
from finetune_operator.reconcile.platform.profiles import check_config
from finetune_operator.reconcile.records.lineage import run_of
from finetune_operator.reconcile.stages.request import JobPurpose, StageRequest
from finetune_operator.reconcile.steps import Blocked, Failed, Working
from finetune_operator.stage_table import STAGES, JobStage
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.vocabulary import Stage


def keep(run: Assessment) -> None:
    """Record the profile and the trainer of the first Job; later ones use the same."""
    found = run.prerequisites
    if not isinstance(found, Blocked):
        run.resolve(
            profile=found.profile.name,
            trainer_image=found.trainer.image,
            trainer_contract=found.trainer.contract,
        )


def build_job(
    run: Assessment, request: StageRequest, purpose: JobPurpose, checkpoint: Checkpoint
) -> Manifest | Blocked | Failed | Working:
    """The Job that `advance` needs, or which prerequisite is missing."""
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    evaluation, reference = run.evaluation, WeightsReference.of(checkpoint)
    missing = storage.check_store(reference.store, found.profile, evaluation.namespace, run.snapshot)
    if missing is not None:
        return missing
    secret, stage = reference.credentials, _stage_of(request, purpose)
    row = STAGES[stage]
    devices = evaluation.spec.compute.devices if row.uses_devices else 0
    on_cuda = found.profile.spec.accelerator.resource.startswith(CUDA_RESOURCES)
    inputs = StageInputs(
        owner=evaluation,
        run=request.run,
        store_uri=reference.store,
        store_credentials=secret,
        report=run.snapshot.facts.report,
        contract_version=found.trainer.contract,
        requested_accelerators=devices if on_cuda else 0,
    )
    config: StageConfig | Failed | Blocked
    if purpose == "stage":
        waiting = check_budget(found.profile, request.stage, evaluation.namespace, run.snapshot)
        if waiting is not None:
            return waiting
        keep(run)
        config = _config(run, request.stage, inputs, checkpoint, found.profile)
        if not isinstance(config, StageConfig):
            return config
        unsent = check_config(config, found.profile)
        if unsent is not None:
            return unsent
    else:
        config = collect_config(inputs, request.stage, probe=purpose == "probe")
    job, mounts = run_of(checkpoint, run.snapshot), EvaluationMounts.of(stage, evaluation.spec)
    return build_stage_job(
        evaluation,
        request.names.of_purpose(purpose),
        config,
        stage,
        Placement(
            image=found.trainer.image,
            image_pull_policy=run.snapshot.facts.image_pull_policy,
            profile=found.profile,
            storage=Storage(
                store=parse_store(reference.store),
                custom_metrics=mounts.custom_metrics,
                tasks=mounts.tasks,
                folders=scored_folders(
                    stage, reference.store, request.run, run.status.resolved.dataset_digest
                ),
            ),
            credentials=CredentialsMount(
                store=SecretReference(name=secret) if secret and not row.isolated else None,
                judges=mounts.judges,
            ),
            devices=devices,
            prediction=job.status.prediction if job is not None else None,
            chosen=evaluation.spec.compute,
        ),
        nonce_key=run.snapshot.facts.nonce_key,
    )


def _stage_of(request: StageRequest, purpose: JobPurpose) -> JobStage:
    """The stage that the pod runs. Collect reads the result of another one."""
    return request.stage if purpose == "stage" else "collect"


def _config(
    run: Assessment, stage: Stage, inputs: StageInputs, checkpoint: Checkpoint, profile: ComputeProfile
) -> StageConfig | Failed | Blocked:
    spec, data = run.evaluation.spec, _data(run, checkpoint)
    if stage == SCORE:
        # The profile may have changed since the start of the Evaluation.
        refused = check_custom_metrics(spec, "spec.customMetrics", inputs.store_uri, profile)
        return refused or score_config(inputs, spec, data)
    return evaluate_config(
        inputs,
        spec,
        EvaluatedWeights.of(checkpoint),
        data,
        live=live_model(run),
        live_adapter=live_adapter(run),
        profile=profile,
        step_timeout_seconds=spec.compute.step_timeout_seconds,
    )


def _data(run: Assessment, checkpoint: Checkpoint) -> MeasuredData:
    resolved = run.status.resolved
    trained = run.snapshot.datasetversions.get(checkpoint.spec.lineage.dataset_version)
    return measured_data(
        run,
        resolved.dataset_version,
        resolved.dataset_digest,
        split=run.evaluation.spec.dataset.split,
        training=None if trained is None else trained.spec.digest,
    )
