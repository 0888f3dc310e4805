"""Readiness of the Deployment of an endpoint's revision."""

from collections.abc import Mapping
from datetime import datetime

from finetune_operator.manifests.labels import REVISION
from finetune_operator.observe.servingpods import ServingTrouble, is_replaced, serving_trouble
from finetune_operator.plan import Manifest


def is_ready(deployment: Manifest, replicas: int) -> bool:
    """Whether this many pods of the current template are ready."""
    status = deployment.get("status", {})
    seen: int = status.get("observedGeneration", 0)
    ready: int = status.get("readyReplicas", 0)
    updated: int = status.get("updatedReplicas", 0)
    return seen >= deployment["metadata"].get("generation", 1) and min(ready, updated) >= replicas


def trouble_of(revision: str, pods: Mapping[str, Manifest], now: datetime) -> ServingTrouble | None:
    """The first problem that prevents a pod of this revision from serving, or None.

    Pods that have ended or are being deleted are replaced. Their problems count only if no other pod has one.
    """
    own = [pod for pod in pods.values() if pod["metadata"].get("labels", {}).get(REVISION) == revision]
    troubles = (serving_trouble(pod, now) for pod in sorted(own, key=is_replaced))
    return next((trouble for trouble in troubles if trouble is not None), None)


def failure_of(deployment: Manifest, pods: Mapping[str, Manifest], now: datetime) -> str | None:
    """The reason that this revision cannot become ready; None while it can."""
    trouble = trouble_of(deployment["metadata"]["name"], pods, now)
    if trouble is not None and trouble.final:
        return trouble.message
    for condition in deployment.get("status", {}).get("conditions", ()):
        if condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            seconds = deployment["spec"].get("progressDeadlineSeconds", 600)
            cause = trouble.message if trouble is not None else "read the logs of its pods"
            return f"not ready within {seconds} s: {cause}"
    return None
