# SPDX-License-Identifier: Apache-2.0
"""Readiness of the Deployment of an endpoint's revision."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.manifests.labels import REVISION
from finetune_operator.observe.lostnodes import node_trouble
from finetune_operator.observe.missingpods import refused_pod
from finetune_operator.observe.podstatus import condition, quoted
from finetune_operator.observe.queueposition import UNKNOWN, Positions
from finetune_operator.observe.servingpods import ServingTrouble, crash_since, is_replaced, serving_trouble
from finetune_operator.observe.stagetimes import parse_time
from finetune_operator.plan import Manifest

QUOTA: Final = re.compile(r"exceeded quota: .*", re.DOTALL)
"""The part of a quota's refusal that does not name the pod, whose name changes with each attempt."""


def is_ready(deployment: Manifest, replicas: int) -> bool:
    """Whether this many pods of the current template are ready."""
    status = deployment.get("status", {})
    seen: int = status.get("observedGeneration", 0)
    ready: int = status.get("readyReplicas", 0)
    updated: int = status.get("updatedReplicas", 0)
    return seen >= deployment["metadata"].get("generation", 1) and min(ready, updated) >= replicas


def trouble_of(
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
            return f"the quota of the namespace refuses a pod: {quoted(quota[0])}"
    return next((trouble.message for trouble in troubles), None)


def failure_of(
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


def regression_of(
    deployment: Manifest, pods: Mapping[str, Manifest], since: datetime, now: datetime
) -> str | None:
    """The reason that a revision which was ready no longer serves well; None if it does.

    A pod that a drain or a lost node replaces is none, unless its replacement does not become ready.
    """
    revision, patience = deployment["metadata"]["name"], timedelta(seconds=deadline_seconds(deployment))
    for pod in _own(revision, pods):
        crash = None if is_replaced(pod) else crash_since(pod, since)
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
    reason, message = refused_pod("pod", refused.get("message") or "", deployment, command)
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
