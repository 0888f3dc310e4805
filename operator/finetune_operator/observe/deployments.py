"""Whether the Deployment of an endpoint's revision is ready, and why it is not."""

from collections.abc import Mapping
from datetime import datetime

from finetune_operator.manifests.labels import REVISION
from finetune_operator.observe.servingpods import ServingTrouble, is_replaced, serving_trouble
from finetune_operator.plan import Manifest


def is_ready(deployment: Manifest, replicas: int) -> bool:
    """Whether so many pods of the current template answer."""
    status = deployment.get("status", {})
    seen: int = status.get("observedGeneration", 0)
    ready: int = status.get("readyReplicas", 0)
    updated: int = status.get("updatedReplicas", 0)
    return seen >= deployment["metadata"].get("generation", 1) and min(ready, updated) >= replicas


def trouble_of(revision: str, pods: Mapping[str, Manifest], now: datetime) -> ServingTrouble | None:
    """The first thing that keeps a pod of this revision from running, or None.

    Pods that have ended, or are to end, have been replaced: they tell why only where no other one does.
    """
    own = [pod for pod in pods.values() if pod["metadata"].get("labels", {}).get(REVISION) == revision]
    troubles = (serving_trouble(pod, now) for pod in sorted(own, key=is_replaced))
    return next((trouble for trouble in troubles if trouble is not None), None)


def failure_of(deployment: Manifest, pods: Mapping[str, Manifest], now: datetime) -> str | None:
    """Why this revision will not come up, or None while it may."""
    trouble = trouble_of(deployment["metadata"]["name"], pods, now)
    if trouble is not None and trouble.final:
        return trouble.message
    for condition in deployment.get("status", {}).get("conditions", ()):
        if condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            seconds = deployment["spec"].get("progressDeadlineSeconds", 600)
            cause = trouble.message if trouble is not None else "look at the logs of its pods"
            return f"not ready within {seconds} s: {cause}"
    return None
