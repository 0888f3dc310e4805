# SPDX-License-Identifier: Apache-2.0
"""Problems of pods that have not started, with advice."""

import re
from datetime import datetime, timedelta
from typing import Any, Final

from finetune_operator.api.labels import PROFILE
from finetune_operator.manifests.answer_engine import ANSWER_CONTAINERS
from finetune_operator.observe.pod_status import (
    Trouble,
    condition,
    container_state,
    describe_pod,
    index_of,
    init_statuses,
    parse_time,
    quote,
    stage_of,
    stage_states,
    trainer_container,
)
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import Reason

STARTING: Final = frozenset({"", "ContainerCreating", "PodInitializing", "CrashLoopBackOff"})
"""Reasons of waiting containers that need no report, or whose last termination explains the problem."""
IMAGE_REASONS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
MAX_START_TIME: Final = timedelta(seconds=120)
"""Time after which a scheduled pod that has not started is reported. Usually a volume cannot be mounted."""

MISSING_OBJECT: Final = re.compile(r'(secret|configmap)s? "([^"]+)" not found', re.IGNORECASE)

NODE_COUNTS: Final = re.compile(r"\d+/\d+ (nodes are available:) (.*?)(?=\.( |$)|$)")
"""Start of a scheduler message, and the reasons with their counts up to the end of the sentence."""

CLAIM_PROBLEM: Final = re.compile(
    r"persistentvolumeclaim|volume node affinity|persistent volumes", re.IGNORECASE
)
SCHEDULING_ADVICE: Final = (
    (
        re.compile(r"Insufficient|Too many pods"),
        "it starts when the resources are free; if they never are, check devices and resources of {profile}",
    ),
    (re.compile(r"taint"), "check pods[].tolerations of {profile}"),
    (re.compile(r"affinity/selector"), "check pods[].nodeSelector and affinity of {profile}"),
    (re.compile(r"were unschedulable"), "it starts when a cordoned node is uncordoned"),
    (
        CLAIM_PROBLEM,
        "kubectl get pvc -n {namespace} shows which claim is not bound, or bound where no node has room",
    ),
)
"""Patterns of scheduler messages, and the advice for each."""


def start_trouble(job: Manifest, pod: Manifest, now: datetime) -> Trouble:
    """The problem of a pod of the Job that does not run yet."""
    whose = describe_pod(stage_of(job), pod)
    troubles = [_init_trouble(pod, status) for status in init_statuses(pod)]
    image = trainer_container(pod).get("image", "")
    troubles.append(container_trouble(pod, whose, image, container_state(pod).get("waiting", {})))
    trouble = next((trouble for trouble in troubles if trouble is not None), None)
    if trouble is not None:
        return trouble
    scheduled = condition(pod, "PodScheduled")
    if scheduled is None:
        return Trouble(
            Reason.QUEUED,
            describe_creation(stage_of(job), several=index_of(pod) is not None),
            expected=True,
        )
    if scheduled.get("status") == "False":
        return _unschedulable(pod, whose, scheduled)
    return _starting(pod, stage_of(job), scheduled, now)


def describe_creation(stage: str, *, several: bool) -> str:
    """A message without an index, so that several pods do not cause a status write each."""
    return f"the {stage} {'pods are' if several else 'pod is'} being created"


def container_trouble(pod: Manifest, whose: str, image: str, state: dict[str, Any]) -> Trouble | None:
    """The problem that the `waiting` state of a container shows; None if the container is starting."""
    reason, message = state.get("reason", ""), quote(state.get("message"))
    if reason in STARTING:
        return None
    namespace = pod["metadata"].get("namespace", "")
    if reason in IMAGE_REASONS:
        return Trouble(
            Reason.IMAGE_UNAVAILABLE,
            f"image {image} of {whose} cannot be pulled: check its name{_where_named(pod, image)} and"
            f" registry, and {_pull_secrets(pod)}. {reason}: {message}",
        )
    missing = MISSING_OBJECT.search(message)
    if missing:
        # References that the operator sets are optional, and the stage reports missing ones itself.
        kind = "Secret" if missing[1].lower() == "secret" else "ConfigMap"
        return Trouble(
            Reason.SECRET_NOT_FOUND if kind == "Secret" else Reason.POD_NOT_STARTING,
            f"{kind} {missing[2]}, which the platform adds to {whose}, does not exist in namespace"
            f" {namespace}: create it, or stop what adds it",
        )
    describe = f"kubectl describe pod {pod['metadata']['name']} -n {namespace}"
    return Trouble(
        Reason.POD_NOT_STARTING,
        f"{whose} does not start. {reason}: {message} ({describe} shows the next attempt)",
    )


def _where_named(pod: Manifest, image: str) -> str:
    """The object with the image's name, if the operator chose the image."""
    profile = pod["metadata"].get("labels", {}).get(PROFILE)
    is_chosen = image == trainer_container(pod).get("image")
    return (
        f" (images of ComputeProfile {profile}, or the operator's default)" if is_chosen and profile else ""
    )


def _pull_secrets(pod: Manifest) -> str:
    """What a private registry needs. The kubelet ignores missing Secrets, and the operator reads none."""
    names = ", ".join(each.get("name", "") for each in pod["spec"].get("imagePullSecrets") or ())
    if not names:
        return "that the nodes may pull it, because the pod has no pull secret"
    return f"that the pod's pull secrets exist in namespace {pod['metadata'].get('namespace', '')}: {names}"


def _init_trouble(pod: Manifest, status: dict[str, Any]) -> Trouble | None:
    """The problem of an init container."""
    name = status["name"]
    whose = f"init container {name}, which the platform adds to the pod,"
    if name in ANSWER_CONTAINERS:
        whose = f"container {name} of {describe_pod(stage_of(pod), pod)}"
    trouble = container_trouble(
        pod, whose, status.get("image", ""), status.get("state", {}).get("waiting") or {}
    )
    ended = status.get("lastState", {}).get("terminated") or {}
    if trouble is None and ended.get("exitCode"):
        return Trouble(
            Reason.POD_NOT_STARTING,
            f"{whose} ends with exit code {ended['exitCode']}:"
            f" kubectl logs {pod['metadata']['name']} -c {name} shows why",
        )
    return trouble


def _starting(pod: Manifest, stage: str, scheduled: dict[str, Any], now: datetime) -> Trouble:
    at = scheduled.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"]
    ends = (state.get("terminated", {}).get("finishedAt") for state in stage_states(pod))
    since = now - max(parse_time(each) for each in (at, *ends) if each)
    name = pod["metadata"]["name"]
    if since >= MAX_START_TIME:
        return Trouble(
            Reason.POD_NOT_STARTING,
            f"{describe_pod(stage, pod)} {name} has a node but has not started: perhaps a volume cannot be"
            f" mounted, or the image is large; kubectl describe pod {name} shows why",
        )
    left = (MAX_START_TIME - since).total_seconds()
    return Trouble(
        Reason.QUEUED,
        describe_creation(stage, several=index_of(pod) is not None),
        expected=True,
        recheck_after_seconds=left + 1,
    )


def _unschedulable(pod: Manifest, whose: str, scheduled: dict[str, Any]) -> Trouble:
    message = quote(scheduled.get("message"))
    if scheduled.get("reason") == "SchedulingGated":
        return Trouble(Reason.QUEUED, f"{whose} waits for admission: {message}", expected=True)
    return Trouble(
        Reason.UNSCHEDULABLE,
        f"no node can take {whose} yet: {without_node_counts(message)} ({scheduling_advice(pod, message)})",
        expected=True,
    )


def without_node_counts(message: str) -> str:
    """A scheduler message without counts of nodes.

    The counts change with the cluster, and each change would cause a status write per pending run.
    """
    return NODE_COUNTS.sub(lambda found: f"no {found[1]} {_without_counts(found[2])}", message)


def _without_counts(reasons: str) -> str:
    return ", ".join(sorted({re.sub(r"^\d+ ", "", reason) for reason in reasons.split(", ")}))


def lacks_capacity(message: str) -> bool:
    """Whether the scheduler, by this message, looks for a node with room; a claim can also be the problem."""
    return not CLAIM_PROBLEM.search(message)


def scheduling_advice(pod: Manifest, message: str) -> str:
    """Advice for a pod with this scheduler message."""
    metadata = pod["metadata"]
    profile = metadata.get("labels", {}).get(PROFILE)
    names = {
        "profile": f"ComputeProfile {profile}" if profile else "the ComputeProfile",
        "namespace": metadata.get("namespace", ""),
    }
    advice = [text.format_map(names) for pattern, text in SCHEDULING_ADVICE if pattern.search(message)]
    return "; ".join(advice) or f"kubectl describe pod {metadata['name']} shows more"
