# SPDX-License-Identifier: Apache-2.0
"""The state and the observation of an endpoint's wanted revision, by which the table is read."""

from finetune_operator.observe.deployments import is_ready
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import (
    PROGRESSING,
    REJECTED_STATES,
    STATES,
    UNVERIFIED_STATES,
    Observation,
    State,
)
from finetune_operator.reconcile.inferencedeployment.rollout.concurrency import slot_of
from finetune_operator.reconcile.inferencedeployment.rollout.replica_shift import awaits_stable
from finetune_operator.reconcile.inferencedeployment.rollout.rollout_context import RolloutContext
from finetune_operator.reconcile.inferencedeployment.rollout.strategies import CanarySteps
from finetune_operator.reconcile.inferencedeployment.traffic import ALL


def state_of(view: RolloutContext) -> State:
    """The state of the wanted revision in the table.

    A revision that failed or was rolled back stays so until an edit of the spec that may help, a decision to
    promote it, or until no other revision serves. A revision starts again if it is retired, has lost its
    requests, or has a state of a newer release.
    """
    entry = view.recorded
    if entry is None:
        return "Pending"
    is_tried_again = entry.spec_hash != view.spec_hash or not view.has_fallback or view.is_retried
    has_lost_requests = view.serving != view.wanted.name
    has_ended = {
        "Live": has_lost_requests,
        # An operator that was killed while it returned the requests has not recorded the reason.
        "Baking": has_lost_requests and not view.standby,
        "Canary": view.canary is None,
        "Standby": True,
        "Failed": is_tried_again,
        "RolledBack": is_tried_again,
        "Retired": True,
    }
    return "Pending" if entry.state not in STATES or has_ended.get(entry.state) else entry.state


def observe(view: RolloutContext, state: State) -> Observation:
    """Observe the wanted revision, which is in this state."""
    if state in REJECTED_STATES and awaits_stable(view):
        return Observation.RETURNING_TRAFFIC
    if state == "Baking" and view.standby:
        return _observe_bake(view)
    held = _observe_hold(view) if state in PROGRESSING else None
    has_regressed = state == "Canary" and view.deployment is not None and view.regression is not None
    if held is not None and not (held is Observation.PAUSED and has_regressed):
        return held
    if state == "Canary" and view.deployment is not None and view.canary is not None:
        return _observe_canary(view, view.canary, view.deployment)
    if view.deployment is None and not has_slot(view):
        return Observation.NO_SLOT
    is_recreating = state in UNVERIFIED_STATES and view.is_recreating
    if view.deployment is not None:
        if is_ready(view.deployment, _needed_replicas(view, state)):
            return _observe_ready(view, state)
        if view.failure is not None:
            return Observation.BROKEN
    if is_recreating and view.has_other_pods:
        return Observation.OCCUPIED
    if view.deployment is None:
        return Observation.ABSENT
    is_short = state in UNVERIFIED_STATES and not is_recreating and view.shortage is not None
    return Observation.NO_CAPACITY if is_short else Observation.NOT_READY


def is_held(view: RolloutContext) -> bool:
    """Whether a pause, a decision or spec.replicas keeps the wanted revision from starting."""
    return view.endpoint.spec.strategy.paused or view.verdict == "Abort" or _observe_hold(view) is not None


def _observe_hold(view: RolloutContext) -> Observation | None:
    """What keeps a revision that is rolling out from going on, whatever its pods do; None if nothing does."""
    strategy, canary = view.endpoint.spec.strategy, view.canary
    if view.endpoint.spec.replicas == 0:
        return Observation.UNPROVABLE
    if canary is not None and canary.needed_replicas is not None:
        return Observation.UNACHIEVABLE
    if view.verdict == "Abort" and view.has_fallback:
        return Observation.ABORTED
    has_failed = view.failure is not None
    return Observation.PAUSED if strategy.paused and not view.has_made_room and not has_failed else None


def _observe_ready(view: RolloutContext, state: State) -> Observation:
    """What a revision with all replicas waits for before it is Live. The first one waits for nothing."""
    strategy = view.endpoint.spec.strategy
    if state not in PROGRESSING or not view.has_fallback:
        return Observation.READY
    if strategy.type == "BlueGreen" and view.verdict != "Promote":
        wait = strategy.blue_green.auto_promotion_seconds if strategy.blue_green is not None else None
        if wait is None or (view.seconds_left(wait) if state == "Preview" else wait) > 0:
            return Observation.PREVIEWS
    if view.canary is not None and view.verdict != "Promote":
        return Observation.DWELLS
    return _last_observation(view)


def _last_observation(view: RolloutContext) -> Observation:
    return Observation.READY if view.endpoint.spec.strategy.bake_seconds is None else Observation.BAKES


def _needed_replicas(view: RolloutContext, state: State) -> int:
    """Ready replicas with which the wanted revision can get requests."""
    if state in UNVERIFIED_STATES and view.is_recreating and (view.has_made_room or not view.has_fallback):
        # Nothing serves while a revision is recreated, so its first replica serves at once.
        return 1
    if state in UNVERIFIED_STATES and view.canary is not None and view.verdict != "Promote":
        return view.canary.replicas_at(0)
    return view.endpoint.spec.replicas


def _observe_canary(view: RolloutContext, canary: CanarySteps, deployment: Manifest) -> Observation:
    """Observe a revision that gets a part of the requests."""
    step = view.step
    if view.regression is not None:
        return Observation.BROKEN
    if not is_ready(deployment, canary.replicas_at(step)):
        return Observation.NOT_READY if view.shortage is None else Observation.NO_CAPACITY
    if step >= canary.end:
        return _last_observation(view)
    if view.verdict == "Promote":
        return Observation.STEPS
    weight = canary.weight_at(step)
    is_routed = view.weights == {view.stable: ALL - weight, view.wanted.name: weight} and view.is_routed
    if not is_routed:
        return Observation.DWELLS
    if view.awaits_continue and view.verdict == "Continue":
        return Observation.STEPS
    pause = canary.pause_at(step)
    if pause is not None and pause.seconds is None:
        return Observation.PAUSES
    if pause is not None and pause.seconds is not None and view.seconds_left(pause.seconds):
        return Observation.DWELLS
    if view.analysis is None:
        return Observation.STEPS
    result = view.analysis.result
    if result is None:
        return Observation.DWELLS
    return Observation.STEPS if result.verdict == "Pass" else Observation.UNDECIDED


def _observe_bake(view: RolloutContext) -> Observation:
    """Observe a revision that serves, while the previous one can still get the requests back."""
    strategy = view.endpoint.spec.strategy
    if view.verdict == "Abort":
        return Observation.ABORTED
    if view.regression is not None:
        return Observation.BROKEN
    if strategy.paused:
        return Observation.PAUSED
    if view.deployment is None or not is_ready(view.deployment, view.endpoint.spec.replicas):
        return Observation.NOT_READY
    has_baked = view.verdict == "Promote" or not view.seconds_to_end_of_bake
    return Observation.READY if has_baked else Observation.BAKES


def has_slot(view: RolloutContext) -> bool:
    """Whether a rollout may start; the first revision of an endpoint needs no slot."""
    has_begun = not view.has_fallback or view.has_made_room
    snapshot = view.snapshot
    return (
        has_begun
        or slot_of(
            view.endpoint,
            view.wanted.profile,
            snapshot.rolling_everywhere,
            snapshot.queued_everywhere,
            snapshot.now,
        ).is_free
    )
