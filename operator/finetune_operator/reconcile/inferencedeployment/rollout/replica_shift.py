# SPDX-License-Identifier: Apache-2.0
"""Division of replicas and requests between two revisions while one replaces the other, and its end."""

from finetune_operator.engine.resources import DEPLOYMENT, POD
from finetune_operator.observe.deployments import (
    capacity_shortage,
    find_trouble,
    has_exceeded_deadline,
    is_ready,
)
from finetune_operator.observe.pod_termination import is_overdue
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import (
    REJECTED_STATES,
    UNVERIFIED_STATES,
    State,
)
from finetune_operator.reconcile.inferencedeployment.rollout.rollout_context import RolloutContext
from finetune_operator.reconcile.inferencedeployment.rollout.strategies import RollingLimits
from finetune_operator.reconcile.inferencedeployment.traffic import ALL


def rolling_limits(view: RolloutContext) -> RollingLimits | None:
    """The limits by which the wanted revision replaces the stable one; None if it has none."""
    strategy, has_gateway = view.endpoint.spec.strategy, view.endpoint.spec.traffic is not None
    is_rolling = strategy.type == "RollingUpdate" and bool(view.others) and view.has_fallback
    if strategy.rolling_update is None or not is_rolling or has_gateway:
        return None
    return RollingLimits.of(strategy.rolling_update, view.endpoint.spec.replicas)


def num_ready(view: RolloutContext, revision: str) -> int:
    """Number of ready pods of the revision."""
    status = view.snapshot.children[DEPLOYMENT].get(revision, {}).get("status", {})
    ready: int = status.get("readyReplicas", 0)
    return ready


def is_dead(view: RolloutContext, revision: str) -> bool:
    """Whether the revision has no ready pod, and another one with requests has one.

    It must not get all requests. With Recreate, it gives and takes the room of the other one, so it does.
    """
    strategy = view.endpoint.spec.strategy
    if "Recreate" in {strategy.type, strategy.fallback} or num_ready(view, revision):
        return False
    return any(num_ready(view, name) for name in view.weights if name != revision)


def awaited_message(view: RolloutContext, revision: str) -> str:
    """What a dead revision waits for, and which revisions answer until then."""
    snapshot = view.snapshot
    pods, deployment = snapshot.children[POD], snapshot.children[DEPLOYMENT].get(revision)
    trouble = find_trouble(revision, deployment, pods, snapshot.now, snapshot.positions)
    why = f": {trouble.message}" if trouble is not None else ""
    living = ", ".join(name for name in view.weights if name != revision and num_ready(view, name))
    return f"{revision} has no ready pod, so {living} keeps its requests until it has one{why}"


def is_complete(view: RolloutContext, revision: str) -> bool:
    """Whether the revision can get all requests: it has all replicas, or cannot get more of them now."""
    if is_dead(view, revision):
        return False
    deployment = view.snapshot.children[DEPLOYMENT].get(revision)
    return (
        deployment is None
        or is_ready(deployment, view.endpoint.spec.replicas)
        or has_exceeded_deadline(deployment)
        or capacity_shortage(deployment, view.snapshot.children[POD], view.snapshot.now) is not None
    )


def awaits_stable(view: RolloutContext) -> bool:
    """Whether the wanted revision has requests for which the stable one does not have its replicas."""
    return view.wanted.name in view.weights and not is_complete(view, view.stable)


def has_lost_its_share(view: RolloutContext) -> bool:
    """Whether revisions share the requests, and the strategy does not, or not any more, say so."""
    if len(view.others) != 1 or view.wanted.name not in view.weights:
        return len(view.others) > 1
    return view.serving == view.wanted.name or (view.canary is None and rolling_limits(view) is None)


def returns_to(view: RolloutContext) -> str:
    """The revision that gets all requests when several have lost their shares: the one that serves.

    If its Deployment was deleted, it is the one of the others that has most ready pods.
    """
    deployments = view.snapshot.children[DEPLOYMENT]
    left = [name for name in view.weights if name in deployments]
    if view.serving in deployments or not left:
        return view.serving
    return max(left, key=lambda name: num_ready(view, name))


def weights_by_replicas(view: RolloutContext) -> dict[str, int]:
    """Percent of the requests of the stable and the wanted revision, by their ready replicas."""
    old, new = num_ready(view, view.stable), num_ready(view, view.wanted.name)
    if not new:
        return {view.stable: ALL}
    weight = min(max(ALL * new // (old + new), 1), ALL - 1)
    return {view.stable: ALL - weight, view.wanted.name: weight}


def replicas_of(view: RolloutContext, state: State, step: int | None = None) -> dict[str, int]:
    """Replicas of the wanted revision, which has this state after the pass, and of those that get requests.

    A revision that is recreated gets the room of the other revisions. They keep their Deployments, with 0
    replicas, to start again if it fails. With `rollingUpdate` replicas are replaced within its limits. A
    canary takes over replicas of the stable revision one by one as they become ready, so the endpoint always
    has `spec.replicas` ready ones. A revision that can get the requests back has all replicas.
    """
    total = view.endpoint.spec.replicas
    replicas = dict.fromkeys((*view.weights, view.wanted.name), total)
    if state in REJECTED_STATES and awaits_stable(view):
        return returning_replicas(view, view.stable)
    if state == "Baking" and view.standby and not _is_recreated(view):
        replicas[view.standby] = total
    if state == "RollingOut" and view.is_recreating:
        replicas |= dict.fromkeys(view.others, 0)
    limits = rolling_limits(view)
    if limits is not None and state in {"RollingOut", "WaitingForCapacity", *REJECTED_STATES}:
        replicas |= _replaced(view, limits, state)
    canary = view.canary
    if canary is not None and state in UNVERIFIED_STATES and view.verdict != "Promote":
        replicas[view.wanted.name] = canary.replicas_at(0)
    if canary is not None and state == "Canary":
        at = view.step if step is None else step
        replicas[view.wanted.name] = canary.replicas_at(at)
        replicas[view.stable] = total - min(canary.shared_at(at), num_ready(view, view.wanted.name))
    return replicas


def _replaced(view: RolloutContext, limits: RollingLimits, state: State) -> dict[str, int]:
    """Replicas while those of the wanted revision replace those of the stable one."""
    name, total = view.wanted.name, limits.replicas
    before = _desired(view, name) if view.deployment is not None else 0
    if state in REJECTED_STATES:
        return {name: before, view.stable: total}
    ready = num_ready(view, name)
    if view.endpoint.spec.strategy.paused:
        return {name: before, view.stable: max(0, total - ready)}
    return {name: limits.started(before, _num_other_pods(view)), view.stable: limits.kept(ready)}


def returning_replicas(view: RolloutContext, stable: str) -> dict[str, int]:
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


def _is_recreated(view: RolloutContext) -> bool:
    """Whether the standby gave its room to the wanted revision, so it starts only if the requests return."""
    strategy = view.endpoint.spec.strategy
    return _desired(view, view.standby) == 0 and "Recreate" in {strategy.type, strategy.fallback}


def _num_other_pods(view: RolloutContext) -> int:
    """Number of pods of other revisions, or of their desired replicas if these have no pods yet."""
    running = sum(not is_overdue(pod, view.snapshot.now) for pod in view.other_pods)
    return max(running, sum(_desired(view, name) for name in view.others))


def _desired(view: RolloutContext, name: str) -> int:
    """Replicas of the revision's Deployment before this pass."""
    replicas: int = view.snapshot.children[DEPLOYMENT][name]["spec"].get("replicas", 1)
    return replicas
