"""Why a pod has not started, in words that say what to do."""

import re
from datetime import datetime, timedelta
from typing import Any, Final

from finetune_operator.manifests.labels import PROFILE
from finetune_operator.observe.peerpods import describe_pod, index_of, nodes_of
from finetune_operator.observe.podstatus import (
    Trouble,
    condition,
    init_statuses,
    quoted,
    stage_of,
    trainer_container,
)
from finetune_operator.observe.stagetimes import container_state, parse_time
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import Reason

STARTING: Final = frozenset({"", "ContainerCreating", "PodInitializing", "CrashLoopBackOff"})
"""What the kubelet says of a container that waits, where nothing is wrong or its last end says what is."""
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
"""A scheduled pod that has not started by then is worth a look: usually a volume that cannot be mounted."""
MAX_TIME_WITHOUT_POD: Final = timedelta(seconds=60)
"""A Job without a pod by then is usually refused by quota or admission; only its events say so."""

MISSING_OBJECT: Final = re.compile(r'(secret|configmap)s? "([^"]+)" not found', re.IGNORECASE)

NODE_COUNTS: Final = re.compile(r"\d+/\d+ (nodes are available:) (.*?)(?=\.( |$)|$)")
"""How the scheduler begins, and the reasons with their counts up to the end of the sentence."""

SCHEDULING_ADVICE: Final = (
    (
        re.compile(r"Insufficient|Too many pods"),
        "it starts when the resources are free; if they never are, check devices and resources of {profile}",
    ),
    (re.compile(r"taint"), "check tolerations of {profile}"),
    (re.compile(r"affinity/selector"), "check nodeSelector of {profile}"),
    (re.compile(r"were unschedulable"), "it starts when a cordoned node is let in again"),
    (
        re.compile(r"persistentvolumeclaim|volume node affinity|persistent volumes", re.IGNORECASE),
        "kubectl get pvc -n {namespace} shows which claim is not bound, or bound where no node with room is",
    ),
)
"""What the scheduler says, and what helps."""


def start_trouble(job: Manifest, pod: Manifest | None, now: datetime) -> Trouble:
    """Why this pod of the Job, or one that it does not have, is not running yet."""
    if pod is None:
        return _without_pod(job, now)
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
            _being_created(stage_of(job), several=index_of(pod) is not None),
            expected=True,
        )
    if scheduled.get("status") == "False":
        return _unschedulable(pod, whose, scheduled)
    return _starting(pod, stage_of(job), scheduled, now)


def _being_created(stage: str, *, several: bool) -> str:
    """The same for all of several pods: one by one they would be as many status writes."""
    return f"the {stage} {'pods are' if several else 'pod is'} being created"


def container_trouble(pod: Manifest, whose: str, image: str, state: dict[str, Any]) -> Trouble | None:
    """What the `waiting` state of one container says is wrong, or None where it is only starting."""
    reason, said = state.get("reason", ""), quoted(state.get("message"))
    if reason in STARTING:
        return None
    namespace = pod["metadata"].get("namespace", "")
    if reason in IMAGE_REASONS:
        return Trouble(
            Reason.IMAGE_UNAVAILABLE,
            f"image {image} of {whose} cannot be pulled: check its name and registry, and that the nodes may"
            f" pull it. {reason}: {said}",
        )
    missing = MISSING_OBJECT.search(said)
    if missing:
        # What the operator itself hands to its pods is optional: the stage says what it misses.
        kind = "Secret" if missing[1].lower() == "secret" else "ConfigMap"
        return Trouble(
            Reason.SECRET_NOT_FOUND if kind == "Secret" else Reason.POD_NOT_STARTING,
            f"{kind} {missing[2]}, which the platform adds to {whose}, does not exist in namespace"
            f" {namespace}: create it, or stop what adds it",
        )
    describe = f"kubectl describe pod {pod['metadata']['name']} -n {namespace}"
    return Trouble(
        Reason.POD_NOT_STARTING,
        f"{whose} does not start. {reason}: {said} ({describe} shows when it is tried again)",
    )


def _init_trouble(pod: Manifest, status: dict[str, Any]) -> Trouble | None:
    """Stages have no init containers of their own: one that fails has been injected."""
    name = status["name"]
    whose = f"init container {name}, which the platform adds to the pod,"
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
    since = now - parse_time(scheduled.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"])
    name = pod["metadata"]["name"]
    if since >= MAX_START_TIME:
        return Trouble(
            Reason.POD_NOT_STARTING,
            f"{describe_pod(stage, pod)} {name} has a node but has not started: a volume may not mount or the"
            f" image may be large; kubectl describe pod {name} shows why",
        )
    left = (MAX_START_TIME - since).total_seconds()
    return Trouble(
        Reason.QUEUED,
        _being_created(stage, several=index_of(pod) is not None),
        expected=True,
        recheck_after_seconds=left + 1,
    )


def _without_pod(job: Manifest, now: datetime) -> Trouble:
    stage, name, nodes = stage_of(job), job["metadata"]["name"], nodes_of(job)
    if job.get("spec", {}).get("suspend"):
        return Trouble(Reason.QUEUED, f"the {stage} Job waits in its queue for admission", expected=True)
    age = now - parse_time(job["metadata"]["creationTimestamp"])
    if age >= MAX_TIME_WITHOUT_POD and not job.get("status", {}).get("failed"):
        lacks = "has no pod" if nodes == 1 else "lacks a pod"
        return Trouble(
            Reason.POD_NOT_STARTING,
            f"Job {name} {lacks}: a quota, a limit range, Pod Security or another admission policy may"
            f" refuse it; kubectl describe job {name} shows why",
        )
    return Trouble(
        Reason.QUEUED,
        _being_created(stage, several=nodes > 1),
        expected=True,
        recheck_after_seconds=max(0.0, (MAX_TIME_WITHOUT_POD - age).total_seconds()) + 1,
    )


def _unschedulable(pod: Manifest, whose: str, scheduled: dict[str, Any]) -> Trouble:
    said = quoted(scheduled.get("message"))
    if scheduled.get("reason") == "SchedulingGated":
        return Trouble(Reason.QUEUED, f"{whose} waits for admission: {said}", expected=True)
    return Trouble(
        Reason.UNSCHEDULABLE,
        f"no node can take {whose} yet: {without_node_counts(said)} ({scheduling_advice(pod, said)})",
        expected=True,
    )


def without_node_counts(said: str) -> str:
    """The scheduler's words without its counts of nodes.

    These change with the cluster, and each change would be a status write for each pending run.
    """
    return NODE_COUNTS.sub(lambda found: f"no {found[1]} {_without_counts(found[2])}", said)


def _without_counts(reasons: str) -> str:
    return ", ".join(sorted({re.sub(r"^\d+ ", "", reason) for reason in reasons.split(", ")}))


def scheduling_advice(pod: Manifest, said: str) -> str:
    """What may help a pod of which the scheduler says this."""
    metadata = pod["metadata"]
    profile = metadata.get("labels", {}).get(PROFILE)
    names = {
        "profile": f"ComputeProfile {profile}" if profile else "the ComputeProfile",
        "namespace": metadata.get("namespace", ""),
    }
    advice = [text.format_map(names) for pattern, text in SCHEDULING_ADVICE if pattern.search(said)]
    return "; ".join(advice) or f"kubectl describe pod {metadata['name']} shows more"
