"""Pods whose node has fallen silent.

A pod that is deleted stays until its node says that its containers have ended. A dead node never says so: the
pod stays Terminating, and its Job makes no other one, because two that train into one folder would be worse
than none. Kubernetes cannot know whether a node is dead or only out of reach; a person can.
"""

from datetime import datetime, timedelta
from typing import Final

from finetune_operator.observe.podstatus import Trouble, has_condition, has_ended
from finetune_operator.observe.stagetimes import parse_time
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import Reason

NODE_REPORT_TIMEOUT: Final = timedelta(seconds=30)
"""A node ends a pod at its deadline, by force if need be, and says so within seconds."""

OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
"""With this taint on a node that is not ready, Kubernetes ends its pods. To delete such a pod by force does
not help: its Job makes no other one before the first one is declared failed."""


def node_trouble(pod: Manifest, whose: str, now: datetime) -> Trouble | None:
    """What a pod's silent node means for who waits for the pod, or None where its node is not silent.

    Args:
        pod: the pod.
        whose: what to call it, such as "the train pod".
        now: the time.
    """
    metadata, node = pod["metadata"], pod["spec"].get("nodeName", "")
    if has_ended(pod) or not node:
        return None
    name, deadline = metadata["name"], metadata.get("deletionTimestamp")
    if deadline is not None:
        if now - parse_time(deadline) < NODE_REPORT_TIMEOUT:
            return None
        return Trouble(
            Reason.NODE_LOST,
            f"{whose} {name} should have ended by {deadline}, and node {node} does not say that it has."
            f" If the node is gone for good: kubectl delete node {node}. If it is shut down:"
            f" kubectl taint node {node} {OUT_OF_SERVICE}. Within two minutes then, or once the node answers,"
            " it goes on",
        )
    if pod.get("status", {}).get("phase") == "Unknown" or _is_unheard_of(pod):
        return Trouble(
            Reason.NODE_LOST,
            f"node {node}, on which {whose} {name} runs, does not answer: kubectl describe node {node} shows"
            " since when. It goes on when the node answers; after about five minutes Kubernetes gives the pod"
            " up",
        )
    return None


def until_overdue(pod: Manifest, now: datetime) -> float | None:
    """Seconds until a pod that is being deleted counts as lost; None where it is not being deleted."""
    deadline = pod["metadata"].get("deletionTimestamp")
    if deadline is None or has_ended(pod):
        return None
    return max(0.0, (parse_time(deadline) + NODE_REPORT_TIMEOUT - now).total_seconds()) + 1


def _is_unheard_of(pod: Manifest) -> bool:
    """The containers were ready when their node last spoke, and the node controller has since declared the
    pod not ready; a readiness gate would look the same."""
    if pod["spec"].get("readinessGates"):
        return False
    return has_condition(pod, "Ready", "False") and has_condition(pod, "ContainersReady", "True")
