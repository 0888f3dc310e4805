# SPDX-License-Identifier: Apache-2.0
"""The Job of one stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.compute import NO_CHOICE, QueueChoice
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job_status import Prediction
from finetune_operator.api.meta import GROUP, Resource
from finetune_operator.manifests.answerpod import (
    ANSWER_CONTAINERS,
    ENDED_BY_SIGTERM,
    separate_engine,
)
from finetune_operator.manifests.labels import (
    CONFIG_DIGEST,
    DEVICES,
    NONCE,
    PROFILE,
    RUN,
    STAGE,
    child_labels,
    short_hash,
    store_annotations,
)
from finetune_operator.manifests.podorigin import origin_annotations
from finetune_operator.manifests.podshape import shaped
from finetune_operator.manifests.podtemplate import (
    CONTAINER,
    CredentialsMount,
    JobConfig,
    Storage,
    build_stage_pod,
)
from finetune_operator.manifests.queueing import labels_of, queueing_of_stage, suspended_until_admitted
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import STAGES, JobStage, pod_names
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.vocabulary import ExitCode

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


def _exit_codes(codes: tuple[int, ...], container: str = CONTAINER) -> Manifest:
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
    queueing = queueing_of_stage(stage, profile, placement.chosen)
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
    template = shaped(
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
            "labels": {**labels, **labels_of(queueing)},
            "annotations": {
                **store_annotations(config.store.uri, secret.name if secret else None),
                **binding,
                **origin_annotations(profile, template),
                **(annotations or {}),
            },
            "ownerReferences": [owner_reference(owner, blocks=not STAGES[stage].serves_deletion)],
        },
        "spec": {
            **suspended_until_admitted(queueing),
            "backoffLimit": STAGES[stage].backoff_limit,
            **_completion(placement.nodes),
            "podFailurePolicy": pod_failure_policy(stage, has_answers=separate_engine(config) is not None),
            "template": template,
        },
    }


def _never_ready(owner: Resource) -> Manifest:
    """Keep a pod of an endpoint's Job out of the Service of the endpoint, which may select all its pods."""
    return {"readinessGates": [{"conditionType": NEVER_READY}]} if owner.kind == "InferenceDeployment" else {}


def _completion(nodes: int) -> Manifest:
    if nodes == 1:
        return {"completionMode": "NonIndexed"}
    return {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
