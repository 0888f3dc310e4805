# SPDX-License-Identifier: Apache-2.0
"""Build the Jobs that measure one Checkpoint."""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.devices import CUDA_RESOURCES
from finetune_operator.api.meta import SecretReference
from finetune_operator.manifests.configs import collect_config
from finetune_operator.manifests.evaluateconfig import evaluate_config
from finetune_operator.manifests.evaluatedweights import EvaluatedWeights
from finetune_operator.manifests.jobs import Placement, build_stage_job
from finetune_operator.manifests.locations import parse_store
from finetune_operator.manifests.podtemplate import CredentialsMount, Storage
from finetune_operator.manifests.stageinputs import StageInputs
from finetune_operator.manifests.weightsreference import WeightsReference
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.evaluation.assessment import Assessment
from finetune_operator.reconcile.evaluation.live import live_adapter, live_model
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.platform.budgets import check_budget
from finetune_operator.reconcile.platform.profiles import check_config
from finetune_operator.reconcile.records.lineage import run_of
from finetune_operator.reconcile.stages.request import JobPurpose, StageRequest
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.stagetable import JobStage
from finetune_trainer.contract.configs.stage import StageConfig


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
) -> Manifest | Blocked | Working:
    """The Job that `advance` needs, or which prerequisite is missing."""
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    evaluation, reference = run.evaluation, WeightsReference.of(checkpoint)
    missing = storage.check_store(reference.store, found.profile, evaluation.namespace, run.snapshot)
    if missing is not None:
        return missing
    secret, devices = reference.credentials, evaluation.spec.compute.devices
    on_cuda = found.profile.spec.devices.resource.startswith(CUDA_RESOURCES)
    inputs = StageInputs(
        owner=evaluation,
        run=request.run,
        store_uri=reference.store,
        store_credentials=secret,
        report=run.snapshot.facts.report,
        contract_version=found.trainer.contract,
        requested_accelerators=devices if on_cuda else 0,
    )
    stage: JobStage = request.stage
    judges = evaluation.spec.judges if purpose == "stage" else ()
    config: StageConfig | None
    if purpose == "stage":
        waiting = check_budget(found.profile, request.stage, evaluation.namespace, run.snapshot)
        if waiting is not None:
            return waiting
        keep(run)
        config = _config(run, inputs, checkpoint, found.profile)
        unsent = check_config(config, found.profile)
        if unsent is not None:
            return unsent
    else:
        stage, devices = "collect", 0
        config = collect_config(inputs, request.stage, probe=purpose == "probe")
    job = run_of(checkpoint, run.snapshot)
    return build_stage_job(
        evaluation,
        request.names.of_purpose(purpose),
        config,
        stage,
        Placement(
            image=found.trainer.image,
            image_pull_policy=run.snapshot.facts.image_pull_policy,
            profile=found.profile,
            storage=Storage(store=parse_store(reference.store)),
            credentials=CredentialsMount(
                store=SecretReference(name=secret) if secret else None,
                judges=tuple(judge.credentials_secret_ref for judge in judges),
            ),
            devices=devices,
            prediction=job.status.prediction if job is not None else None,
            chosen=evaluation.spec.compute,
        ),
        nonce_key=run.snapshot.facts.nonce_key,
    )


def _config(
    run: Assessment, inputs: StageInputs, checkpoint: Checkpoint, profile: ComputeProfile
) -> StageConfig:
    spec = run.evaluation.spec
    return evaluate_config(
        inputs,
        spec,
        EvaluatedWeights.of(checkpoint),
        dataset=run.status.resolved.dataset_digest or "",
        group_by=run.snapshot.group_column(run.status.resolved.dataset_version),
        split=spec.dataset.split,
        live=live_model(run),
        live_adapter=live_adapter(run),
        profile=profile,
        step_timeout_seconds=spec.compute.step_timeout_seconds,
    )
