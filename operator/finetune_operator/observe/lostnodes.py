# SPDX-License-Identifier: Apache-2.0
"""Pods whose node does not respond.

A deleted pod stays until its node reports that its containers have ended. A dead node never reports: the pod
stays Terminating, and its Job creates no replacement, because two pods that train into one folder would be
worse than none. Kubernetes cannot distinguish a dead node from an unreachable one; an administrator can.
"""

from datetime import datetime, timedelta
from typing import Final

from finetune_operator.observe.podstatus import Trouble, has_condition, has_ended
from finetune_operator.observe.stagetimes import parse_time
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import Reason

NODE_REPORT_TIMEOUT: Final = timedelta(seconds=30)
"""Time after the deadline of a pod's deletion until its node counts as silent. A node ends pods at their
deadline, by force if necessary, and reports the end within seconds."""

OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
"""Taint with which Kubernetes ends the pods of a node that is not ready. Force deletion of a pod does not
help, because its Job creates no replacement before the pod counts as failed."""


def node_trouble(pod: Manifest, whose: str, now: datetime) -> Trouble | None:
    """The problem that the pod's node does not respond; None if it does.

    Args:
        pod: the pod.
        whose: the pod in the message, such as "the train pod".
        now: the time.
    """
    metadata, node = pod["metadata"], pod["spec"].get("nodeName", "")
    if has_ended(pod) or not node:
        return None
    name, deadline = metadata["name"], metadata.get("deletionTimestamp")
    if deadline is not None:
        if not is_overdue(pod, now):
            return None
        return Trouble(
            Reason.NODE_LOST,
            f"{whose} {name} should have ended by {deadline}, but node {node} does not confirm it. If the"
            f" node is gone for good: kubectl delete node {node}. If it is shut down: kubectl taint node"
            f" {node} {OUT_OF_SERVICE}. This continues within two minutes after that, or when the node"
            " responds",
        )
    if pod.get("status", {}).get("phase") == "Unknown" or _is_unheard_of(pod):
        return Trouble(
            Reason.NODE_LOST,
            f"node {node} of {whose} {name} does not respond: kubectl describe node {node} shows since when."
            " This continues when the node responds. After about five minutes Kubernetes deletes the pod",
        )
    return None


def is_overdue(pod: Manifest, now: datetime) -> bool:
    """Whether the pod is terminating, and its node has not confirmed its end in time."""
    deadline = pod["metadata"].get("deletionTimestamp")
    return deadline is not None and now - parse_time(deadline) >= NODE_REPORT_TIMEOUT


def until_overdue(pod: Manifest, now: datetime) -> float | None:
    """Seconds until a terminating pod counts as lost; None if it is not terminating."""
    deadline = pod["metadata"].get("deletionTimestamp")
    if deadline is None or has_ended(pod):
        return None
    return max(0.0, (parse_time(deadline) + NODE_REPORT_TIMEOUT - now).total_seconds()) + 1


def _is_unheard_of(pod: Manifest) -> bool:
    """Whether the node controller has marked the pod as not ready, although its containers were ready.

    A closed readiness gate has the same conditions, so pods with gates are excluded.
    """
    if pod["spec"].get("readinessGates"):
        return False
    return has_condition(pod, "Ready", "False") and has_condition(pod, "ContainersReady", "True")
