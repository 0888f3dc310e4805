# SPDX-License-Identifier: Apache-2.0
"""The Job of a stage, with its pod template: security, volumes and resources.

The config of the stage decides which volumes and Secrets its pod mounts.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from finetune_operator.api.compute import NO_CHOICE, QueueChoice
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job_status import Prediction
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import PROFILE, RUN, STAGE
from finetune_operator.api.meta import GROUP, Resource
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
    RUNNER,
    child_labels,
    short_hash,
    store_annotations,
)
from finetune_operator.manifests.model_cache import cache_volume
from finetune_operator.manifests.pod_entries import apply_pod_entries
from finetune_operator.manifests.pod_origin import origin_annotations
from finetune_operator.manifests.pod_security import container_security, pod_security
from finetune_operator.manifests.pod_sizing import SCRATCH_LIMIT, PodSizing, disk_volume, pod_sizing
from finetune_operator.manifests.queueing import choose_stage_queue, make_queue_labels, suspend_until_admitted
from finetune_operator.manifests.trainer_config import config_variable
from finetune_operator.manifests.volumes import (
    NO_VOLUMES,
    Location,
    Volumes,
    config_map_source,
    join_volumes,
    memory_volume,
    one_volume,
    parse_location,
    parse_source,
    parse_store,
    secret_volume,
)
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import STAGES, JobStage, pod_names
from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.configs import (
    CleanupConfig,
    EvaluateConfig,
    PreflightConfig,
    PrepareConfig,
    StageConfig,
)
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
from finetune_trainer.contract.references import SecretMount, StoreConfig
from finetune_trainer.contract.serving import DownloadConfig, FillConfig, MergeConfig
from finetune_trainer.contract.vocabulary import ExitCode

JobConfig = StageConfig | CleanupConfig | DownloadConfig | FillConfig | MergeConfig

TRAINER_CONTAINER: Final = "trainer"
TOKEN_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInputs:
    """What a Job needs besides its config."""

    image: str
    image_pull_policy: str
    nonce_key: str
    """Random text of the operator. Results of stages are bound to the Job by a nonce made of it."""
    profile: ComputeProfile | None
    devices: int = 0
    """Devices per pod; 0 for stages without devices, whose pods may run on any node."""
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
    volumes: Volumes = NO_VOLUMES
    """Volumes besides those that the config names."""
    store: Volumes | None = None
    """What the pod mounts in place of the store; None: the store."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotations of the Job, in addition to those of its store."""


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


def build_stage_pod(stage: JobStage, config: JobConfig, inputs: JobInputs) -> Manifest:
    """The pod's spec."""
    profile, devices = inputs.profile, inputs.devices
    sizing = pod_sizing(stage, profile, devices, inputs.prediction)
    mounted = _volumes(config, sizing, inputs)
    resources = container_resources(sizing, profile, devices)
    container: Manifest = {
        "name": TRAINER_CONTAINER,
        "image": inputs.image,
        "imagePullPolicy": inputs.image_pull_policy,
        "env": _environment(config, profile, devices, resources["requests"]["cpu"]),
        "resources": resources,
        "terminationMessagePath": TERMINATION_MESSAGE_PATH,
        "terminationMessagePolicy": "File",
        "securityContext": container_security(),
        "volumeMounts": [*mounted.mounts],
    }
    if STAGES[stage].multi_node:
        container["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    pod: Manifest = {
        **pod_security(ISOLATED if STAGES[stage].isolated else RUNNER),
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [*mounted.volumes],
    }
    if sizing.grace_seconds is not None:
        pod["terminationGracePeriodSeconds"] = sizing.grace_seconds
    if isinstance(config, EvaluateConfig) and profile is not None:
        return add_answer_containers(pod, config, profile, devices, sizing)
    return pod


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


def _volumes(config: JobConfig, sizing: PodSizing, inputs: JobInputs) -> Volumes:
    return join_volumes(
        (
            inputs.store or _store_volume(config, sizing),
            Volumes(
                (disk_volume("scratch", sizing.resources, SCRATCH_LIMIT),),
                ({"name": "scratch", "mountPath": SCRATCH_MOUNT},),
            ),
            inputs.volumes,
            cache_volume(_claim_of(config.cache) if isinstance(config, FillConfig) else None, is_filled=True),
            _location_volumes(config),
            memory_volume(sizing.shared_memory),
            _token_volume(config),
            *map(secret_volume, _named_secrets(config)),
            _key_volume(inputs.peer_key),
        )
    )


def _store_volume(config: JobConfig, sizing: PodSizing) -> Volumes:
    """The claim. For a bucket, an emptyDir for files that a stage downloads or will upload.

    It holds models and resume states of any size, so it has no limit except that of the profile.
    """
    claim = _claim_of(config.store)
    source: Manifest
    if claim is None:
        limit = sizing.resources.ephemeral_storage
        source = {"emptyDir": {} if limit is None else {"sizeLimit": limit}}
    else:
        read_only = {"readOnly": True} if isinstance(config, FillConfig) else {}
        source = {"persistentVolumeClaim": {"claimName": claim, **read_only}}
    return one_volume("store", source, STORE_MOUNT, read_only=False)


def _claim_of(store: StoreConfig) -> str | None:
    """The claim of a store; None for a bucket, and for a stage without a store."""
    location = parse_store(store.uri) if store.uri else None
    return None if location is None else location.name


def _location_volumes(config: JobConfig) -> Volumes:
    """Sources and base model that are in the cluster, read-only.

    One volume per claim: some drivers refuse the same claim twice, writable and read-only.
    """
    claim = _claim_of(config.store)
    known = {} if claim is None else {("pvc", claim): "store"}
    found = NO_VOLUMES
    for name, location, mount in _locations(config):
        volume = known.setdefault((location.scheme, location.name), name)
        added = one_volume(volume, _location_source(location), mount)
        found += added if volume == name else Volumes(mounts=added.mounts)
    return found


def _locations(config: JobConfig) -> Iterator[tuple[str, Location, str]]:
    """Name, location and mount path of each."""
    if isinstance(config, PrepareConfig):
        for number, source in enumerate(config.sources):
            location = parse_source(source.uri)
            if location is not None:
                yield f"source-{number}", location, f"{SOURCES_MOUNT}/{number}"
    if isinstance(config, PreflightConfig | DownloadConfig) and config.base_model_path is not None:
        yield "base-model", parse_location(config.base_model_uri), BASE_MODEL_MOUNT


def _location_source(location: Location) -> Manifest:
    if location.scheme == "configmap":
        return config_map_source(location.name)
    return {"persistentVolumeClaim": {"claimName": location.name, "readOnly": True}}


def _token_volume(config: JobConfig) -> Volumes:
    """The token with which a pod reports its progress."""
    if not isinstance(config, StageConfig) or config.report is None:
        return NO_VOLUMES
    token = PurePosixPath(REPORT_TOKEN_PATH)
    source = {"audience": REPORT_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": token.name}
    projected = {"projected": {"sources": [{"serviceAccountToken": source}]}}
    return one_volume("report-token", projected, str(token.parent))


def _named_secrets(config: Contract) -> Iterator[SecretMount]:
    """The Secrets that a config names, in the order of its fields."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, SecretMount):
                yield part
            elif isinstance(part, Contract):
                yield from _named_secrets(part)


def _key_volume(secret: str | None) -> Volumes:
    """The key of several pods. The volume is not optional, because a pod without the key would fail."""
    if secret is None:
        return NO_VOLUMES
    return one_volume("peer-key", {"secret": {"secretName": secret}}, PEER_KEY_MOUNT)


NEVER_READY: Final = f"{GROUP}/serves"
"""Condition of a pod that nothing sets, so that the pod never becomes ready."""
NON_RETRYABLE_EXIT_CODES: Final = (ExitCode.BAD_CONFIG, ExitCode.BAD_DATA)
"""Exit codes at which the Job of any stage fails at once, and a pod of an endpoint is not retried."""
IGNORED_EXIT_CODES: Final = (ExitCode.PREEMPTED_SAVED, ExitCode.PEER_LOST)
"""Exit codes that never count towards `backoffLimit`."""


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
    owner: Resource, name: str, stage: JobStage, config: JobConfig, inputs: JobInputs
) -> Manifest:
    """A Job whose pods execute `config`; one of them leaves the result as its termination message."""
    binding: dict[str, str] = {}
    if isinstance(config, StageConfig):
        nonce = short_hash(inputs.nonce_key, owner.uid, name, length=32)
        config = config.model_copy(update={"nonce": nonce})
        binding = {NONCE: nonce}
        if STAGES[stage].binds_config:
            binding[CONFIG_DIGEST] = config.digest
    profile, secret = inputs.profile, config.store.credentials
    marks: dict[str, str] = {STAGE: stage}
    if profile is not None:
        marks[PROFILE] = profile.name
    if inputs.devices:
        marks[DEVICES] = str(inputs.devices)
    labels = child_labels(owner, **marks)
    queueing = choose_stage_queue(stage, profile, inputs.chosen)
    template: Manifest = {
        "metadata": {"labels": labels},
        "spec": {
            **build_stage_pod(stage, config, inputs),
            **({"subdomain": inputs.service} if inputs.service else {}),
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
                **inputs.annotations,
            },
            "ownerReferences": [owner_reference(owner, blocks=not STAGES[stage].serves_deletion)],
        },
        "spec": {
            **suspend_until_admitted(queueing),
            "backoffLimit": STAGES[stage].backoff_limit,
            **_completion(inputs.nodes),
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
