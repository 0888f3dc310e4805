# SPDX-License-Identifier: Apache-2.0
"""Deployments of revisions: readiness, age of the image, and the problems of their pods, with advice."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import REVISION
from finetune_operator.api.meta import Condition
from finetune_operator.manifests.endpoint import FETCH_CONTAINER
from finetune_operator.manifests.jobs import NON_RETRYABLE_EXIT_CODES
from finetune_operator.manifests.queueing import QUEUE_LABEL
from finetune_operator.observe.admission import UNKNOWN, Positions, recheck_seconds, waiting_since
from finetune_operator.observe.job_problems import describe_refusal
from finetune_operator.observe.pod_startup import (
    container_trouble,
    lacks_capacity,
    scheduling_advice,
    without_node_counts,
)
from finetune_operator.observe.pod_status import condition, container_statuses, has_ended, parse_time, quote
from finetune_operator.observe.pod_termination import eviction_advice, node_trouble
from finetune_operator.plan import Manifest
from finetune_operator.status.conditions import drop_conditions, set_condition
from finetune_operator.status.reasons import ConditionType, Reason

LOST_WITH_NODE: Final = "Unknown"
"""Reason that container runtimes have for containers whose end they did not see."""


@dataclass(frozen=True, slots=True)
class ServingTrouble:
    """A problem as reason and message; `final` if a retry cannot help."""

    reason: str
    message: str
    final: bool = False
    lacks_capacity: bool = False
    """Whether the pod has no node because none, or no quota, has room for it."""
    recheck_after_seconds: float | None = None
    """Seconds until the diagnosis may differ even if nothing changes."""


def is_replaced(pod: Manifest) -> bool:
    """Whether the pod has ended or is terminating, so its Deployment has created another one."""
    return has_ended(pod) or "deletionTimestamp" in pod["metadata"]


def is_gated(pod: Manifest) -> bool:
    """Whether the pod waits for its admission, so that no node is looked for."""
    return bool(pod["spec"].get("schedulingGates"))


def serving_trouble(pod: Manifest, now: datetime, positions: Positions = UNKNOWN) -> ServingTrouble | None:
    """The problem that prevents this pod from serving; None if it serves or is starting."""
    name = pod["metadata"]["name"]
    lost = node_trouble(pod, "pod", now)
    if lost is not None:
        return ServingTrouble(lost.reason, lost.message)
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        message = without_node_counts(quote(scheduled.get("message")))
        if scheduled.get("reason") == "SchedulingGated":
            later = recheck_seconds(now - waiting_since(pod))
            gated = _describe_gate(pod, positions, message)
            return ServingTrouble(Reason.QUEUED, gated, lacks_capacity=True, recheck_after_seconds=later)
        return ServingTrouble(
            Reason.UNSCHEDULABLE,
            f"no node can take pod {name} yet: {message} ({scheduling_advice(pod, message)})",
            lacks_capacity=lacks_capacity(message),
        )
    if pod.get("status", {}).get("phase") == "Failed" and pod["status"].get("reason"):
        return _ended_by_node(pod)
    troubles = (_find_container_trouble(pod, status) for status in container_statuses(pod))
    return next((trouble for trouble in troubles if trouble is not None), None)


def _describe_gate(pod: Manifest, positions: Positions, message: str) -> str:
    name, queue = pod["metadata"]["name"], pod["metadata"].get("labels", {}).get(QUEUE_LABEL)
    if queue is None:
        return f"pod {name} waits for admission: {message}"
    namespace, position = pod["metadata"].get("namespace", ""), positions.get(pod["metadata"]["uid"])
    at = "" if position is None else f", {position}"
    return (
        f"pod {name} waits in LocalQueue {queue} for admission{at} (kubectl get workloads -n {namespace}"
        " shows what its Workload lacks)"
    )


def find_crash(pod: Manifest, since: datetime) -> str | None:
    """The first container of the pod that has crashed since this time, as a message; None if none has.

    A container that ended with its node, which restarted, has not crashed.
    """
    for status in pod.get("status", {}).get("containerStatuses") or ():
        for ended in (status.get(state, {}).get("terminated") for state in ("state", "lastState")):
            finished = (ended or {}).get("finishedAt")
            has_crashed = ended and ended.get("exitCode") and ended.get("reason") != LOST_WITH_NODE
            if has_crashed and (finished is None or parse_time(finished) >= since):
                why = ended.get("reason") or quote(ended.get("message")) or "no message"
                return (
                    f"container {status['name']} of pod {pod['metadata']['name']} ended with exit code"
                    f" {ended['exitCode']}: {why}"
                )
    return None


def _ended_by_node(pod: Manifest) -> ServingTrouble:
    """A pod that its node ended or rejected."""
    status, node = pod["status"], pod["spec"].get("nodeName", "")
    message = f"{status['reason']}: {quote(status.get('message'))}"
    ended = f"node {node} has ended pod {pod['metadata']['name']}. {message}"
    if status["reason"] == "Evicted":
        return ServingTrouble(Reason.EVICTED, f"{ended} ({eviction_advice(pod, 'serve')})")
    return ServingTrouble(
        Reason.POD_NOT_STARTING, f"{ended} (kubectl describe node {node} shows its free resources)"
    )


def _find_container_trouble(pod: Manifest, status: dict[str, Any]) -> ServingTrouble | None:
    name, container = pod["metadata"]["name"], status["name"]
    waits = container_trouble(
        pod, f"pod {name}", status.get("image", ""), status.get("state", {}).get("waiting") or {}
    )
    if waits is not None and waits.reason != Reason.POD_NOT_STARTING:
        return ServingTrouble(waits.reason, waits.message)
    ended = status.get("state", {}).get("terminated") or status.get("lastState", {}).get("terminated") or {}
    code = ended.get("exitCode", 0)
    if ended.get("reason") == "OOMKilled":
        return ServingTrouble(
            Reason.OUT_OF_MEMORY,
            f"container {container} of pod {name} was killed for using more memory than its limit:"
            " raise resources.memory for serve in pods of the ComputeProfile",
        )
    if code:
        words = quote(ended.get("message")) or f"kubectl logs {name} -c {container}"
        return ServingTrouble(
            Reason.POD_NOT_STARTING,
            f"container {container} of pod {name} ended with exit code {code}: {words}",
            final=code in NON_RETRYABLE_EXIT_CODES,
        )
    return ServingTrouble(waits.reason, waits.message) if waits is not None else None


QUOTA: Final = re.compile(r"exceeded quota: .*", re.DOTALL)
"""The part of a quota's refusal that does not name the pod, whose name changes with each attempt."""


def is_ready(deployment: Manifest, replicas: int) -> bool:
    """Whether this many pods of the current template are ready."""
    status = deployment.get("status", {})
    seen: int = status.get("observedGeneration", 0)
    ready: int = status.get("readyReplicas", 0)
    updated: int = status.get("updatedReplicas", 0)
    return seen >= deployment["metadata"].get("generation", 1) and min(ready, updated) >= replicas


def find_trouble(
    revision: str,
    deployment: Manifest | None,
    pods: Mapping[str, Manifest],
    now: datetime,
    positions: Positions = UNKNOWN,
) -> ServingTrouble | None:
    """The first problem that prevents a pod of this revision from serving or from being created, or None.

    Pods that have ended or are being deleted are replaced. Their problems count only if no other pod has one.
    """
    refused = None if deployment is None else _refusal(deployment)
    return next(_troubles(revision, pods, now, positions), refused)


def capacity_shortage(
    deployment: Manifest, pods: Mapping[str, Manifest], now: datetime, positions: Positions = UNKNOWN
) -> str | None:
    """The resources that pods of this revision wait for; None if each pod has a node.

    It is None, too, if a pod that is not ready has another problem: capacity would not solve it.
    """
    starting = [
        pod
        for pod in _own(deployment["metadata"]["name"], pods)
        if _is_starting(pod) and node_trouble(pod, "pod", now) is None
    ]
    found = (serving_trouble(pod, now, positions) for pod in starting)
    troubles = [trouble for trouble in found if trouble is not None]
    if not all(trouble.lacks_capacity for trouble in troubles):
        return None
    refused = condition(deployment, "ReplicaFailure")
    if refused is not None and refused.get("status") == "True":
        quota = QUOTA.search(refused.get("message", ""))
        if quota is not None:
            return f"the quota of the namespace refuses a pod: {quote(quota[0])}"
    return next((trouble.message for trouble in troubles), None)


def find_failure_reason(
    deployment: Manifest, pods: Mapping[str, Manifest], now: datetime, *, deadline_passed: bool = True
) -> str | None:
    """The reason that this revision cannot become ready; None while it can.

    Args:
        deployment: the Deployment of the revision.
        pods: all pods of the endpoint.
        now: time of the pass.
        deadline_passed: whether the deadline has passed if time without capacity does not count.
    """
    troubles = tuple(_troubles(deployment["metadata"]["name"], pods, now))
    final = next((trouble.message for trouble in troubles if trouble.final), None)
    if final is not None or not (deadline_passed and has_exceeded_deadline(deployment)):
        return final
    trouble = next(iter(troubles), _refusal(deployment))
    cause = trouble.message if trouble is not None else "read the logs of its pods"
    return f"not ready within {deadline_seconds(deployment)} s: {cause}"


def find_regression(
    deployment: Manifest, pods: Mapping[str, Manifest], since: datetime, now: datetime
) -> str | None:
    """The reason that a revision which was ready no longer serves well; None if it does.

    A pod that a drain or a lost node replaces is none, unless its replacement does not become ready.
    """
    revision, patience = deployment["metadata"]["name"], timedelta(seconds=deadline_seconds(deployment))
    for pod in _own(revision, pods):
        crash = None if is_replaced(pod) else find_crash(pod, since)
        if crash is not None:
            return crash
        unready_since = None if is_replaced(pod) else _unready_since(pod)
        if unready_since is not None and now - max(since, unready_since) >= patience:
            return f"pod {pod['metadata']['name']} was not ready for {deadline_seconds(deployment)} s"
    return None


def has_exceeded_deadline(deployment: Manifest) -> bool:
    """Whether the Deployment reports no progress; the time for which its pods had no node counts."""
    progressing = condition(deployment, "Progressing")
    return progressing is not None and progressing.get("reason") == "ProgressDeadlineExceeded"


def deadline_seconds(deployment: Manifest) -> int:
    """Seconds without progress after which the Deployment exceeds its deadline."""
    seconds: int = deployment["spec"].get("progressDeadlineSeconds", 600)
    return seconds


def _refusal(deployment: Manifest) -> ServingTrouble | None:
    """What refuses the pods of this revision, so that they do not exist; None if nothing does."""
    refused = condition(deployment, "ReplicaFailure")
    if refused is None or refused.get("status") != "True":
        return None
    name = deployment["metadata"]["name"]
    command = f"kubectl describe replicaset -l {REVISION}={name}"
    reason, message = describe_refusal("pod", refused.get("message") or "", deployment, command)
    return ServingTrouble(reason, message)


def _troubles(
    revision: str, pods: Mapping[str, Manifest], now: datetime, positions: Positions = UNKNOWN
) -> Iterator[ServingTrouble]:
    troubles = (serving_trouble(pod, now, positions) for pod in sorted(_own(revision, pods), key=is_replaced))
    return (trouble for trouble in troubles if trouble is not None)


def _own(revision: str, pods: Mapping[str, Manifest]) -> list[Manifest]:
    return [pod for pod in pods.values() if pod["metadata"].get("labels", {}).get(REVISION) == revision]


def _is_starting(pod: Manifest) -> bool:
    ready = condition(pod, "Ready")
    return not is_replaced(pod) and (ready is None or ready["status"] != "True")


def _unready_since(pod: Manifest) -> datetime | None:
    ready = condition(pod, "Ready")
    changed = ready.get("lastTransitionTime") if ready is not None and ready["status"] != "True" else None
    return parse_time(changed) if changed else None


VERSION: Final = re.compile(r"^v?([0-9]+(?:\.[0-9]+)+)(?![0-9A-Za-z])")

Status = Literal["True", "False", "Unknown"]


class EndpointHealth(NamedTuple):
    """Status, reason and message of a condition."""

    status: Status
    reason: Reason
    message: str


def availability(
    endpoint: InferenceDeployment, revision: str, deployment: Manifest | None, trouble: ServingTrouble | None
) -> EndpointHealth:
    """Whether at least one replica of the serving revision is ready."""
    replicas = endpoint.spec.replicas
    ready: int = (deployment or {}).get("status", {}).get("readyReplicas", 0)
    if not revision:
        return EndpointHealth("False", Reason.NO_REPLICA_READY, "no revision has served yet")
    if ready:
        return EndpointHealth("True", Reason.AVAILABLE, f"revision {revision} has ready replicas")
    if replicas == 0:
        return EndpointHealth(
            "False", Reason.SCALED_TO_ZERO, "spec.replicas is 0: raise it to serve requests"
        )
    why = trouble.message if trouble is not None else "its pods are starting, or fail their readiness probe"
    return EndpointHealth(
        "False", Reason.NO_REPLICA_READY, f"0 of {replicas} replicas of revision {revision} are ready: {why}"
    )


def image_age(deployment: Manifest, floor: str) -> EndpointHealth:
    """Whether the version in the tag of the trainer image is at least `floor`."""
    image = _trainer_image(deployment)
    version = _version(image.rpartition("/")[2].partition("@")[0].partition(":")[2])
    name = deployment["metadata"]["name"]
    advice = (
        "set spec.restartedAt to the current time to start a revision with the operator's image; if the"
        " ComputeProfile sets images.trainer, raise that first"
    )
    if version is None:
        return EndpointHealth(
            "Unknown",
            Reason.VERSION_UNKNOWN,
            f"revision {name} serves with image {image}, whose tag is not a version, so it is unknown whether"
            f" it is older than the security floor {floor}: if it is, {advice}",
        )
    if version < (_version(floor) or ()):
        return EndpointHealth(
            "False",
            Reason.BELOW_FLOOR,
            f"revision {name} serves with image {image}, older than the security floor {floor}: {advice}",
        )
    return EndpointHealth(
        "True", Reason.NOT_BELOW_FLOOR, f"image {image} is not older than the security floor {floor}"
    )


def set_health(
    conditions: tuple[Condition, ...],
    type_: ConditionType,
    health: EndpointHealth | None,
    *,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions with this one set to `health`; without it if `health` is None."""
    if health is None:
        return drop_conditions(conditions, type_)
    return set_condition(
        conditions,
        type_,
        health.status,
        health.reason,
        health.message,
        generation=generation,
        now=now,
    )


def _trainer_image(deployment: Manifest) -> str:
    """The image of the init container, whichever engine serves."""
    containers = deployment["spec"].get("template", {}).get("spec", {}).get("initContainers", ())
    image: str = next((each["image"] for each in containers if each["name"] == FETCH_CONTAINER), "")
    return image


def _version(text: str) -> tuple[int, ...] | None:
    """Numbers of a version without trailing zeros and suffixes such as -rc1; None if it is not a version."""
    found = VERSION.match(text)
    if found is None:
        return None
    numbers = [int(part) for part in found[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
