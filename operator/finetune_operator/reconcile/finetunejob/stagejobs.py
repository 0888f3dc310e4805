# SPDX-License-Identifier: Apache-2.0
"""Build the Jobs of a run's stages from the run, its prerequisites and the row of the stage."""

from collections.abc import Callable
from typing import get_args

from finetune_operator.api.pod_resources import CPU, CUDA_RESOURCES
from finetune_operator.manifests.configs import collect_config
from finetune_operator.manifests.jobs import CredentialsMount, Placement, Storage, build_stage_job
from finetune_operator.manifests.peers import (
    build_peer_key,
    build_peer_policy,
    build_peer_service,
    coordinator_host,
    peer_name,
)
from finetune_operator.manifests.pod_sizing import one_device_holds
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.manifests.volumes import parse_source, parse_store
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunejob.prerequisites import Prerequisites, chosen_queueing
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stopping import limit_of
from finetune_operator.reconcile.measuring import EvaluationMounts, scored_folders
from finetune_operator.reconcile.platform.budgets import check_budget
from finetune_operator.reconcile.platform.devicefacts import device_facts
from finetune_operator.reconcile.platform.profiles import check_config
from finetune_operator.reconcile.stages.request import JobPurpose, PeerObjects, StageRequest
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.stage_table import STAGES, JobStage
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.vocabulary import Stage

ConfigBuilder = Callable[[StageInputs], StageConfig | Blocked]
"""Builds the config of one stage, or returns why its Job may not start. A new stage builds nothing else."""


def build_job(
    run: Run, request: StageRequest, purpose: JobPurpose, build_config: ConfigBuilder
) -> Manifest | Blocked | Working:
    """The Job that `advance` needs, or which prerequisite is missing."""
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    inputs = _inputs(run, found, request.stage)
    stage: JobStage = request.stage
    config: StageConfig | Blocked
    if purpose == "stage":
        waiting = check_budget(found.profile_of(stage), request.stage, run.job.namespace, run.snapshot)
        if waiting is not None:
            return waiting
        run.keep(found)
        config = build_config(inputs)
        if isinstance(config, Blocked):
            return config
        unsent = check_config(config, found.profile)
        if unsent is not None:
            return unsent
    else:
        # Reading a stored result shows whether the store answers; a probe also writes a file.
        stage, config = "collect", collect_config(inputs, request.stage, probe=purpose == "probe")
    return build_stage_job(
        run.job,
        request.names.of_purpose(purpose),
        config,
        stage,
        _placement(run, found, stage),
        nonce_key=run.snapshot.facts.nonce_key,
    )


def build_peer_objects(run: Run, stage: Stage) -> PeerObjects | None:
    """What the pods of a stage with several pods share; None for other stages."""
    if nodes_of(run, stage) == 1:
        return None
    return PeerObjects(
        service=build_peer_service(run.job, stage),
        policy=build_peer_policy(run.job, stage, run.snapshot.facts.monitoring_namespace),
        key=build_peer_key(run.job, stage, run.snapshot.entropy),
    )


def nodes_of(run: Run, stage: JobStage) -> int:
    """Number of pods of the stage that run at once."""
    return run.job.spec.compute.nodes if STAGES[stage].multi_node else 1


def _devices_of(run: Run, found: Prerequisites, stage: JobStage) -> int:
    """Devices of each pod of the stage."""
    profile, prediction = found.profile_of(stage), run.status.prediction
    facts = device_facts(profile)
    holds = one_device_holds(
        prediction.weights_bytes if prediction is not None else None,
        facts.memory_bytes if facts is not None else None,
    )
    requested = min(run.job.spec.compute.devices, profile.spec.accelerator.max_per_pod)
    return STAGES[stage].devices_of(requested, one_holds_model=holds)


def _inputs(run: Run, found: Prerequisites, stage: Stage) -> StageInputs:
    secret = found.store.credentials_secret_ref
    devices = run.job.spec.compute.devices
    limits = (limit_of(run, each) for each in get_args(Stage) if STAGES[each].time_limit)
    on_cuda = found.profile_of(stage).spec.accelerator.resource.startswith(CUDA_RESOURCES)
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
        mfu=run.snapshot.calibrated_mfu(found.profile.name),
        max_run_seconds=next((limit.seconds for limit in limits if limit is not None), None),
        max_unpacked_bytes=found.profile.spec.limits.unpacked_bytes,
        coordinator=coordinator_host(run.job, stage) if nodes_of(run, stage) > 1 else None,
    )


def _placement(run: Run, found: Prerequisites, stage: JobStage) -> Placement:
    spec, row = run.job.spec, STAGES[stage]
    mounts = EvaluationMounts.of(stage, spec.evaluation)
    source = spec.dataset.source if "source" in row.mounts else None
    base_model = spec.base_model if "base_model" in row.mounts else None
    nodes = nodes_of(run, stage)
    peers = peer_name(run.job, stage) if nodes > 1 else None
    return Placement(
        image=found.trainer.image,
        image_pull_policy=run.snapshot.facts.image_pull_policy,
        profile=found.profile_of(stage),
        storage=Storage(
            store=parse_store(found.store.uri),
            sources=(parse_source(source.uri),) if source else (),
            base_model=parse_source(base_model.uri) if base_model and base_model.uri else None,
            custom_metrics=mounts.custom_metrics,
            tasks=mounts.tasks,
            folders=scored_folders(stage, found.store.uri, run.job.uid, run.measured_version.digest),
        ),
        credentials=CredentialsMount(
            store=None if row.isolated else found.store.credentials_secret_ref,
            sources=(source.credentials_secret_ref,) if source else (),
            base_model=base_model.credentials_secret_ref if base_model else None,
            judges=mounts.judges,
        ),
        devices=_devices_of(run, found, stage),
        nodes=nodes,
        service=peers,
        peer_key=peers,
        prediction=run.status.prediction,
        chosen=chosen_queueing(run.job, stage),
    )
