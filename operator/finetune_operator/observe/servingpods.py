# SPDX-License-Identifier: Apache-2.0
"""Problems of pods of endpoints that do not serve, with advice."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from finetune_operator.manifests.jobs import NON_RETRYABLE_EXIT_CODES
from finetune_operator.manifests.queueing import QUEUE_LABEL
from finetune_operator.observe.admission import recheck_seconds, waiting_since
from finetune_operator.observe.lostnodes import node_trouble
from finetune_operator.observe.podfailures import eviction_advice
from finetune_operator.observe.podstarts import (
    container_trouble,
    lacks_capacity,
    scheduling_advice,
    without_node_counts,
)
from finetune_operator.observe.podstatus import condition, container_statuses, has_ended, quoted
from finetune_operator.observe.queueposition import UNKNOWN, Positions
from finetune_operator.observe.stagetimes import parse_time
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import Reason

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
        message = without_node_counts(quoted(scheduled.get("message")))
        if scheduled.get("reason") == "SchedulingGated":
            later = recheck_seconds(now - waiting_since(pod))
            gated = _gated(pod, positions, message)
            return ServingTrouble(Reason.QUEUED, gated, lacks_capacity=True, recheck_after_seconds=later)
        return ServingTrouble(
            Reason.UNSCHEDULABLE,
            f"no node can take pod {name} yet: {message} ({scheduling_advice(pod, message)})",
            lacks_capacity=lacks_capacity(message),
        )
    if pod.get("status", {}).get("phase") == "Failed" and pod["status"].get("reason"):
        return _ended_by_node(pod)
    troubles = (_trouble_of(pod, status) for status in container_statuses(pod))
    return next((trouble for trouble in troubles if trouble is not None), None)


def _gated(pod: Manifest, positions: Positions, message: str) -> str:
    name, queue = pod["metadata"]["name"], pod["metadata"].get("labels", {}).get(QUEUE_LABEL)
    if queue is None:
        return f"pod {name} waits for admission: {message}"
    namespace, position = pod["metadata"].get("namespace", ""), positions.get(pod["metadata"]["uid"])
    at = "" if position is None else f", {position}"
    return (
        f"pod {name} waits in LocalQueue {queue} for admission{at} (kubectl get workloads -n {namespace}"
        " shows what its Workload lacks)"
    )


def crash_since(pod: Manifest, since: datetime) -> str | None:
    """The first container of the pod that has crashed since this time, as a message; None if none has.

    A container that ended with its node, which restarted, has not crashed.
    """
    for status in pod.get("status", {}).get("containerStatuses") or ():
        for ended in (status.get(state, {}).get("terminated") for state in ("state", "lastState")):
            finished = (ended or {}).get("finishedAt")
            has_crashed = ended and ended.get("exitCode") and ended.get("reason") != LOST_WITH_NODE
            if has_crashed and (finished is None or parse_time(finished) >= since):
                why = ended.get("reason") or quoted(ended.get("message")) or "no message"
                return (
                    f"container {status['name']} of pod {pod['metadata']['name']} ended with exit code"
                    f" {ended['exitCode']}: {why}"
                )
    return None


def _ended_by_node(pod: Manifest) -> ServingTrouble:
    """A pod that its node ended or rejected."""
    status, node = pod["status"], pod["spec"].get("nodeName", "")
    message = f"{status['reason']}: {quoted(status.get('message'))}"
    ended = f"node {node} has ended pod {pod['metadata']['name']}. {message}"
    if status["reason"] == "Evicted":
        return ServingTrouble(Reason.EVICTED, f"{ended} ({eviction_advice(pod, 'serve')})")
    return ServingTrouble(
        Reason.POD_NOT_STARTING, f"{ended} (kubectl describe node {node} shows its free resources)"
    )


def _trouble_of(pod: Manifest, status: dict[str, Any]) -> ServingTrouble | None:
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
        words = quoted(ended.get("message")) or f"kubectl logs {name} -c {container}"
        return ServingTrouble(
            Reason.POD_NOT_STARTING,
            f"container {container} of pod {name} ended with exit code {code}: {words}",
            final=code in NON_RETRYABLE_EXIT_CODES,
        )
    return ServingTrouble(waits.reason, waits.message) if waits is not None else None
