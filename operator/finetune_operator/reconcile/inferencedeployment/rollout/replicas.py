# SPDX-License-Identifier: Apache-2.0
"""Replicas of each revision of an endpoint."""

from finetune_operator.engine.resources import DEPLOYMENT
from finetune_operator.observe.pod_termination import is_overdue
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import (
    UNPROVEN,
    UNWELCOME,
    State,
)
from finetune_operator.reconcile.inferencedeployment.rollout.rollinglimits import RollingLimits
from finetune_operator.reconcile.inferencedeployment.rollout.sharing import (
    awaits_stable,
    num_ready,
    rolling_limits,
)
from finetune_operator.reconcile.inferencedeployment.rollout.view import EndpointView


def replicas_of(view: EndpointView, state: State, step: int | None = None) -> dict[str, int]:
    """Replicas of the wanted revision, which has this state after the pass, and of those that get requests.

    A revision that is recreated gets the room of the other revisions. They keep their Deployments, with 0
    replicas, to start again if it fails. With `rollingUpdate` replicas are replaced within its limits. A
    canary takes over replicas of the stable revision one by one as they become ready, so the endpoint always
    has `spec.replicas` ready ones. A revision that can get the requests back has all replicas.
    """
    total = view.endpoint.spec.replicas
    replicas = dict.fromkeys((*view.weights, view.wanted.name), total)
    if state in UNWELCOME and awaits_stable(view):
        return returning_replicas(view, view.stable)
    if state == "Baking" and view.standby and not _is_recreated(view):
        replicas[view.standby] = total
    if state == "RollingOut" and view.is_recreating:
        replicas |= dict.fromkeys(view.others, 0)
    limits = rolling_limits(view)
    if limits is not None and state in {"RollingOut", "WaitingForCapacity", *UNWELCOME}:
        replicas |= _replaced(view, limits, state)
    canary = view.canary
    if canary is not None and state in UNPROVEN and view.verdict != "Promote":
        replicas[view.wanted.name] = canary.replicas_at(0)
    if canary is not None and state == "Canary":
        at = view.step if step is None else step
        replicas[view.wanted.name] = canary.replicas_at(at)
        replicas[view.stable] = total - min(canary.shared_at(at), num_ready(view, view.wanted.name))
    return replicas


def _replaced(view: EndpointView, limits: RollingLimits, state: State) -> dict[str, int]:
    """Replicas while those of the wanted revision replace those of the stable one."""
    name, total = view.wanted.name, limits.replicas
    before = _desired(view, name) if view.deployment is not None else 0
    if state in UNWELCOME:
        return {name: before, view.stable: total}
    ready = num_ready(view, name)
    if view.endpoint.spec.strategy.paused:
        return {name: before, view.stable: max(0, total - ready)}
    return {name: limits.started(before, _num_other_pods(view)), view.stable: limits.kept(ready)}


def returning_replicas(view: EndpointView, stable: str) -> dict[str, int]:
    """Replicas while the requests of the other revisions return to the stable revision.

    Each replica of it that is ready takes over from one of those that share the requests with it. The first
    one may need the room of such a replica.
    """
    total = view.endpoint.spec.replicas
    replicas = {stable: total}
    for name in view.weights:
        if stable in view.weights and name != stable:
            replicas[name] = min(_desired(view, name), max(total - max(num_ready(view, stable), 1), 1))
    return replicas


def _is_recreated(view: EndpointView) -> bool:
    """Whether the standby gave its room to the wanted revision, so it starts only if the requests return."""
    strategy = view.endpoint.spec.strategy
    return _desired(view, view.standby) == 0 and "Recreate" in {strategy.type, strategy.fallback}


def _num_other_pods(view: EndpointView) -> int:
    """Number of pods of other revisions, or of their desired replicas if these have no pods yet."""
    running = sum(not is_overdue(pod, view.snapshot.now) for pod in view.other_pods)
    return max(running, sum(_desired(view, name) for name in view.others))


def _desired(view: EndpointView, name: str) -> int:
    """Replicas of the revision's Deployment before this pass."""
    replicas: int = view.snapshot.children[DEPLOYMENT][name]["spec"].get("replicas", 1)
    return replicas
