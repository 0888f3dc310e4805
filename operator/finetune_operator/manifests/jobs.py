# SPDX-License-Identifier: Apache-2.0
"""The Job of one stage, with its pod template.

Pod template of a stage: security, storage and resources.

The Job of one stage.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from finetune_operator.api.compute import NO_CHOICE, QueueChoice
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.evaluation_metrics import CustomMetric, EvaluationTask
from finetune_operator.api.finetune_job_status import Prediction
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import GROUP, Resource, SecretReference
from finetune_operator.api.pod_resources import CPU
from finetune_operator.manifests.answer_engine import (
    ANSWER_CONTAINERS,
    ENDED_BY_SIGTERM,
    add_answer_containers,
    separate_engine,
)
from finetune_operator.manifests.labels import (
    CONFIG_DIGEST,
    DEVICES,
    ISOLATED,
    NONCE,
    PROFILE,
    RUN,
    RUNNER,
    STAGE,
    child_labels,
    short_hash,
    store_annotations,
)
from finetune_operator.manifests.model_cache import cache_volume
from finetune_operator.manifests.own_metrics import (
    ScoredFolders,
    folder_volumes,
    source_volumes,
    task_volumes,
)
from finetune_operator.manifests.pod_security import container_security, pod_security
from finetune_operator.manifests.pod_shape import apply_pod_entries, origin_annotations
from finetune_operator.manifests.pod_sizing import SCRATCH_LIMIT, PodSizing, disk_volume, pod_sizing
from finetune_operator.manifests.queueing import choose_stage_queue, make_queue_labels, suspend_until_admitted
from finetune_operator.manifests.trainer_config import config_variable
from finetune_operator.manifests.volumes import Location, Use, secret_mount, secret_volume
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import STAGES, JobStage, pod_names
from finetune_trainer.contract.configs import CleanupConfig, EvaluateConfig, StageConfig
from finetune_trainer.contract.environment import (
    BASE_MODEL_MOUNT,
    METRICS_PORT,
    PEER_KEY_MOUNT,
    REPORT_AUDIENCE,
    REPORT_TOKEN_PATH,
    SCRATCH_MOUNT,
    SOURCES_MOUNT,
    STORE_MOUNT,
    TERMINATION_MESSAGE_PATH,
)
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.serving import DownloadConfig, FillConfig, MergeConfig
from finetune_trainer.contract.vocabulary import ExitCode

JobConfig = StageConfig | CleanupConfig | DownloadConfig | FillConfig | MergeConfig

TRAINER_CONTAINER: Final = "trainer"
TOKEN_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class Storage:
    """Volumes of a stage. The store is writable, sources and base model are read-only."""

    store: Location | None
    """None for a bucket: the pod then has an emptyDir at the store's path."""
    sources: tuple[Location | None, ...] = ()
    """Of each source of rows; None for one on the network."""
    base_model: Location | None = None
    custom_metrics: tuple[CustomMetric, ...] = ()
    """Metrics of the user whose sources the pod mounts."""
    tasks: tuple[EvaluationTask, ...] = ()
    """Tasks of general ability whose files the pod mounts."""
    folders: ScoredFolders | None = None
    """Folders that the pod mounts in place of the store."""
    cache: str | None = None
    """Claim of the model cache that the pod fills. It mounts the claim of the store read-only."""


@dataclass(frozen=True, slots=True)
class CredentialsMount:
    """Secrets that the pod mounts."""

    store: SecretReference | None = None
    sources: tuple[SecretReference | None, ...] = ()
    """Of each source of rows."""
    base_model: SecretReference | None = None
    judges: tuple[SecretReference | None, ...] = ()
    """Of each judge of the evaluation."""
    prometheus: SecretReference | None = None


def container_resources(
    sizing: PodSizing, profile: ComputeProfile | None, devices: int
) -> dict[str, dict[str, str]]:
    """Requests and limits of the container.

    The memory limit equals the request, so that a stage is killed for its own use and not for a neighbour's.
    There is no CPU limit. If devices are CPU cores, the CPU request is the number of devices, unless the
    profile sets the stage's resources.
    """
    resources = sizing.resources
    requests = {"cpu": resources.cpu, **resources.limited}
    limits = resources.limited
    if devices and profile is not None:
        if profile.spec.accelerator.resource == CPU:
            requests["cpu"] = resources.cpu if sizing.is_given else str(devices)
        else:
            limits[profile.spec.accelerator.resource] = str(devices)
    return {"requests": requests, "limits": limits}


def build_stage_pod(
    stage: JobStage,
    config: JobConfig,
    *,
    image: str,
    image_pull_policy: str,
    profile: ComputeProfile | None,
    devices: int,
    storage: Storage,
    credentials: CredentialsMount,
    peer_key: str | None = None,
    prediction: Prediction | None = None,
) -> Manifest:
    """The pod's spec. `devices` is 0 for stages without devices; their pods may run on any node."""
    sizing = pod_sizing(stage, profile, devices, prediction)
    volumes, mounts = _volumes(config, sizing, storage)
    for mount in _secrets(credentials):
        volume, volume_mount = secret_volume(mount)
        volumes.append(volume)
        mounts.append(volume_mount)
    if peer_key is not None:
        volume, volume_mount = _peer_key_volume(peer_key)
        volumes.append(volume)
        mounts.append(volume_mount)
    resources = container_resources(sizing, profile, devices)
    container: Manifest = {
        "name": TRAINER_CONTAINER,
        "image": image,
        "imagePullPolicy": image_pull_policy,
        "env": _environment(config, profile, devices, resources["requests"]["cpu"]),
        "resources": resources,
        "terminationMessagePath": TERMINATION_MESSAGE_PATH,
        "terminationMessagePolicy": "File",
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    if STAGES[stage].multi_node:
        container["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    pod: Manifest = {
        **pod_security(ISOLATED if STAGES[stage].isolated else RUNNER),
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": volumes,
    }
    if sizing.grace_seconds is not None:
        pod["terminationGracePeriodSeconds"] = sizing.grace_seconds
    if isinstance(config, EvaluateConfig) and profile is not None:
        return add_answer_containers(pod, config, profile, devices, sizing)
    return pod


def _peer_key_volume(secret: str) -> tuple[Manifest, Manifest]:
    """The volume, and its mount. The volume is not optional, because a pod without the key would fail."""
    volume = {"name": "peer-key", "secret": {"secretName": secret}}
    return volume, {"name": "peer-key", "mountPath": PEER_KEY_MOUNT, "readOnly": True}


def _environment(
    config: JobConfig, profile: ComputeProfile | None, devices: int, cpu: str
) -> list[dict[str, str]]:
    variables = [
        config_variable(config),
        {"name": "HOME", "value": SCRATCH_MOUNT},
    ]
    if devices and profile is not None and profile.spec.accelerator.resource == CPU:
        # Otherwise OpenMP starts a thread per core of the node, and the threads compete for the pod's cores.
        variables.append({"name": "OMP_NUM_THREADS", "value": str(max(devices, _cores(cpu)))})
    return variables


def _cores(cpu: str) -> int:
    """Cores of a CPU request, rounded up; 0 for units other than cores and millicores."""
    number, milli = cpu.removesuffix("m"), cpu.endswith("m")
    return math.ceil(float(number) / (1000 if milli else 1)) if number[-1].isdigit() else 0


def _secrets(credentials: CredentialsMount) -> list[SecretMount]:
    named: list[tuple[Use, SecretReference | None, int | None]] = [
        ("store", credentials.store, None),
        *(("source", source, number) for number, source in enumerate(credentials.sources)),
        ("base-model", credentials.base_model, None),
        *(("judge", judge, number) for number, judge in enumerate(credentials.judges)),
        ("prometheus", credentials.prometheus, None),
    ]
    mounts = (secret_mount(use, secret.name if secret else None, number) for use, secret, number in named)
    return [mount for mount in mounts if mount is not None]


def _volumes(config: JobConfig, sizing: PodSizing, storage: Storage) -> tuple[list[Manifest], list[Manifest]]:
    sources, source_mounts = source_volumes(storage.custom_metrics)
    if storage.folders is not None:
        folders, folder_mounts = folder_volumes(storage.folders, sizing.resources)
        return [*folders, *sources], [*folder_mounts, *source_mounts]
    tasks, task_mounts = task_volumes(storage.tasks)
    caches, cache_mounts = cache_volume(storage.cache, is_filled=True)
    volumes: list[Manifest] = [
        {"name": "store", **_store_volume(storage, sizing)},
        disk_volume("scratch", sizing.resources, SCRATCH_LIMIT),
        *sources,
        *tasks,
        *caches,
    ]
    mounts: list[Manifest] = [
        {"name": "store", "mountPath": STORE_MOUNT},
        {"name": "scratch", "mountPath": SCRATCH_MOUNT},
        *source_mounts,
        *task_mounts,
        *cache_mounts,
    ]
    # One volume per claim: some drivers refuse the same claim twice, writable and read-only.
    known = {} if storage.store is None else {("pvc", storage.store.name): "store"}
    for name, location, mount in (
        *(
            (f"source-{number}", location, f"{SOURCES_MOUNT}/{number}")
            for number, location in enumerate(storage.sources)
        ),
        ("base-model", storage.base_model, BASE_MODEL_MOUNT),
    ):
        if location is None:
            continue
        volume = known.setdefault((location.scheme, location.name), name)
        if volume == name:
            volumes.append({"name": name, **_read_only_volume(location)})
        mounts.append({"name": volume, "mountPath": mount, "readOnly": True})
    if sizing.shared_memory is not None:
        volumes.append(
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": sizing.shared_memory}}
        )
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108 - a volume of the pod
    if isinstance(config, StageConfig) and config.report is not None:
        token = PurePosixPath(REPORT_TOKEN_PATH)
        source = {"audience": REPORT_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": token.name}
        volumes.append({"name": "report-token", "projected": {"sources": [{"serviceAccountToken": source}]}})
        mounts.append({"name": "report-token", "mountPath": str(token.parent), "readOnly": True})
    return volumes, mounts


def _store_volume(storage: Storage, sizing: PodSizing) -> dict[str, Any]:
    """The claim. For a bucket, an emptyDir for files that a stage downloads or will upload.

    It holds models and resume states of any size, so it has no limit except that of the profile.
    """
    if storage.store is None:
        limit = sizing.resources.ephemeral_storage
        return {"emptyDir": {} if limit is None else {"sizeLimit": limit}}
    if storage.cache is not None:
        return _read_only_volume(storage.store)
    return {"persistentVolumeClaim": {"claimName": storage.store.name}}


def _read_only_volume(location: Location) -> dict[str, Any]:
    if location.scheme == "configmap":
        # Optional: the pod starts without it, and its result reports what is missing.
        return {"configMap": {"name": location.name, "optional": True}}
    return {"persistentVolumeClaim": {"claimName": location.name, "readOnly": True}}


NEVER_READY: Final = f"{GROUP}/serves"
"""Condition of a pod that nothing sets, so that the pod never becomes ready."""
NON_RETRYABLE_EXIT_CODES: Final = (ExitCode.BAD_CONFIG, ExitCode.BAD_DATA)
"""Exit codes at which the Job of any stage fails at once, and a pod of an endpoint is not retried."""
IGNORED_EXIT_CODES: Final = (ExitCode.PREEMPTED_SAVED, ExitCode.PEER_LOST)
"""Exit codes that never count towards `backoffLimit`."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a stage runs, and with which image, volumes and devices."""

    image: str
    image_pull_policy: str
    profile: ComputeProfile | None
    storage: Storage
    credentials: CredentialsMount
    devices: int = 0
    """Devices per pod."""
    nodes: int = 1
    """Number of pods that run at once. If there are several, each has an index and a name."""
    service: str | None = None
    """Name of the headless Service that gives several pods their names."""
    peer_key: str | None = None
    """Name of the Secret with the key of several pods."""
    prediction: Prediction | None = None
    """What preflight predicted about the run."""
    chosen: QueueChoice = NO_CHOICE
    """The queue and the priority that the run chooses."""


def child_metadata(owner: Resource, name: str) -> Manifest:
    """Metadata of an object that is deleted with its owner."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": child_labels(owner),
        "ownerReferences": [owner_reference(owner)],
    }


def owner_reference(owner: Resource, *, blocks: bool = True) -> Manifest:
    """Delete a child with its owner.

    Args:
        blocks: whether the child is deleted before the owner in a foreground deletion.
    """
    return {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": blocks,
    }


def non_retryable_exit_codes(stage: JobStage) -> tuple[ExitCode, ...]:
    """Exit codes at which the Job of this stage fails at once.

    A stage with devices also fails if its store is unavailable: another pod would use devices only to fail.
    """
    codes = NON_RETRYABLE_EXIT_CODES
    return (*codes, ExitCode.STORE_UNAVAILABLE) if STAGES[stage].uses_devices else codes


def pod_failure_policy(stage: JobStage, *, has_answers: bool = False) -> Manifest:
    """How a pod's end affects its Job. The first rule that matches applies:

    1. A disruption, such as an eviction, never counts, whatever the exit code.
    2. Bad data and bad config fail the Job at once; so does an unavailable store if the stage uses devices.
    3. Preemptions with a saved state never count; with `has_answers`, neither do those of the containers in
       which an engine generates answers.

    Everything else counts towards `backoffLimit`.
    """
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": _exit_codes(non_retryable_exit_codes(stage))},
            {"action": "Ignore", "onExitCodes": _exit_codes(IGNORED_EXIT_CODES)},
            *(
                {"action": "Ignore", "onExitCodes": _exit_codes(ENDED_BY_SIGTERM, container)}
                for container in (ANSWER_CONTAINERS if has_answers else ())
            ),
        ]
    }


def _exit_codes(codes: tuple[int, ...], container: str = TRAINER_CONTAINER) -> Manifest:
    # With the container's name, because exit codes of an injected sidecar have other meanings.
    return {"containerName": container, "operator": "In", "values": [int(code) for code in codes]}


def build_stage_job(
    owner: Resource,
    name: str,
    config: JobConfig,
    stage: JobStage,
    placement: Placement,
    *,
    annotations: Mapping[str, str] | None = None,
    nonce_key: str,
) -> Manifest:
    """A Job whose pods execute `config`; one of them leaves the result as its termination message.

    Args:
        annotations: annotations of the Job, in addition to those of its store.
        nonce_key: random text of the operator. Results of stages are bound to the Job by a nonce made of it.
    """
    binding: dict[str, str] = {}
    if isinstance(config, StageConfig):
        nonce = short_hash(nonce_key, owner.uid, name, length=32)
        config = config.model_copy(update={"nonce": nonce})
        binding = {NONCE: nonce}
        if STAGES[stage].binds_config:
            binding[CONFIG_DIGEST] = config.digest
    profile, secret = placement.profile, placement.credentials.store
    marks: dict[str, str] = {STAGE: stage}
    if profile is not None:
        marks[PROFILE] = profile.name
    if placement.devices:
        marks[DEVICES] = str(placement.devices)
    labels = child_labels(owner, **marks)
    queueing = choose_stage_queue(stage, profile, placement.chosen)
    template: Manifest = {
        "metadata": {"labels": labels},
        "spec": {
            **build_stage_pod(
                stage,
                config,
                image=placement.image,
                image_pull_policy=placement.image_pull_policy,
                profile=profile,
                devices=placement.devices,
                storage=placement.storage,
                credentials=placement.credentials,
                peer_key=placement.peer_key,
                prediction=placement.prediction,
            ),
            **({"subdomain": placement.service} if placement.service else {}),
            **_never_ready(owner),
        },
    }
    template = apply_pod_entries(
        template,
        profile,
        pod_names(stage),
        {RUN: owner.uid, STAGE: stage},
        isolated=STAGES[stage].isolated,
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": {**labels, **make_queue_labels(queueing)},
            "annotations": {
                **store_annotations(config.store.uri, secret.name if secret else None),
                **binding,
                **origin_annotations(profile, template),
                **(annotations or {}),
            },
            "ownerReferences": [owner_reference(owner, blocks=not STAGES[stage].serves_deletion)],
        },
        "spec": {
            **suspend_until_admitted(queueing),
            "backoffLimit": STAGES[stage].backoff_limit,
            **_completion(placement.nodes),
            "podFailurePolicy": pod_failure_policy(stage, has_answers=separate_engine(config) is not None),
            "template": template,
        },
    }


def _never_ready(owner: Resource) -> Manifest:
    """Keep a pod of an endpoint's Job out of the Service of the endpoint, which may select all its pods."""
    return (
        {"readinessGates": [{"conditionType": NEVER_READY}]}
        if owner.kind == InferenceDeployment.__name__
        else {}
    )


def _completion(nodes: int) -> Manifest:
    if nodes == 1:
        return {"completionMode": "NonIndexed"}
    return {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
