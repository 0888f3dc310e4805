"""What the Deployment of a revision says about itself, and the endpoint's list of revisions."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from finetune_operator.api.inferencedeployment import InferenceDeployment, RevisionStatus
from finetune_operator.manifests.labels import REVISION, short_hash
from finetune_operator.observe.servingpods import ServingTrouble, is_replaced, serving_trouble
from finetune_operator.plan import Manifest

KEPT: Final = 10
"""Revisions that an endpoint's status remembers."""


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


def spec_hash(endpoint: InferenceDeployment) -> str:
    """Tells edits of an endpoint apart that may mend a failed revision; scaling and protection may not.

    A field that a later release added counts only where it is set, so that an upgrade is no edit.
    """
    dumped = endpoint.spec.model_dump(mode="json", exclude={"replicas", "network_policy"})
    spec = {name: value for name, value in dumped.items() if value is not None}
    return short_hash(json.dumps(spec, sort_keys=True), length=16)


def find_revision(revisions: Iterable[RevisionStatus], name: str) -> RevisionStatus | None:
    """The entry of one revision, or None."""
    return next((revision for revision in revisions if revision.name == name), None)


def with_entry(
    revisions: tuple[RevisionStatus, ...], entry: RevisionStatus, now: datetime
) -> tuple[RevisionStatus, ...]:
    """The list, newest first, with this entry since now.

    One of the same state, step and spec stays as it is, with the time since when it holds.
    """
    old = find_revision(revisions, entry.name)
    if old is not None and _progress(old) == _progress(entry):
        return revisions
    entry = entry.model_copy(update={"since": now.replace(microsecond=0)})
    if old is not None:
        return tuple(entry if revision.name == entry.name else revision for revision in revisions)
    return (entry, *revisions)[:KEPT]


def _progress(entry: RevisionStatus) -> tuple[str, int | None, str]:
    return entry.state, entry.step, entry.spec_hash


def with_weights(
    revisions: tuple[RevisionStatus, ...], weights: Mapping[str, int]
) -> tuple[RevisionStatus, ...]:
    """The list with each revision's percent of the requests; one that `weights` leaves out gets none."""
    return tuple(
        revision
        if revision.weight == weights.get(revision.name, 0)
        else revision.model_copy(update={"weight": weights.get(revision.name, 0)})
        for revision in revisions
    )
