"""The state and the observation of an endpoint's wanted revision, by which the table is read."""

from finetune_operator.observe.deployments import is_ready
from finetune_operator.reconcile.inferencedeployment.rolloutlimit import must_wait
from finetune_operator.reconcile.inferencedeployment.transitions import (
    PROGRESSING,
    STATES,
    UNPROVEN,
    Observation,
    State,
)
from finetune_operator.reconcile.inferencedeployment.view import EndpointView


def state_of(view: EndpointView) -> State:
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
        "Baking": has_lost_requests,
        "Standby": True,
        "Failed": is_tried_again,
        "RolledBack": is_tried_again,
        "Retired": True,
    }
    return "Pending" if entry.state not in STATES or has_ended.get(entry.state) else entry.state


def observe(view: EndpointView, state: State) -> Observation:
    """Observe the wanted revision, which is in this state."""
    if state == "Baking" and view.standby:
        return _observe_bake(view)
    is_progressing = state in PROGRESSING
    if is_progressing and view.endpoint.spec.replicas == 0:
        return Observation.UNPROVABLE
    if is_progressing and view.verdict == "Abort" and view.has_fallback:
        return Observation.ABORTED
    is_paused = is_progressing and view.endpoint.spec.strategy.paused and not view.has_made_room
    if is_paused and view.failure is None:
        return Observation.PAUSED
    if view.deployment is None and not _has_slot(view):
        return Observation.NO_SLOT
    is_recreating = state in UNPROVEN and view.is_recreating
    if view.deployment is not None:
        # Nothing serves while a revision is recreated, so its first replica serves at once.
        if is_ready(view.deployment, 1 if is_recreating else view.endpoint.spec.replicas):
            return _observe_ready(view, state)
        if view.failure is not None:
            return Observation.BROKEN
    if is_recreating and view.has_other_pods:
        return Observation.OCCUPIED
    if view.deployment is None:
        return Observation.ABSENT
    is_short = state in UNPROVEN and not is_recreating and view.shortage is not None
    return Observation.NO_CAPACITY if is_short else Observation.NOT_READY


def _observe_ready(view: EndpointView, state: State) -> Observation:
    """What a revision with all replicas waits for before it is Live. The first one waits for nothing."""
    strategy = view.endpoint.spec.strategy
    if state not in PROGRESSING or not view.others:
        return Observation.READY
    if strategy.type == "BlueGreen" and view.verdict != "Promote":
        wait = strategy.blue_green.auto_promotion_seconds if strategy.blue_green is not None else None
        if wait is None or (view.seconds_left(wait) if state == "Preview" else wait) > 0:
            return Observation.PREVIEWS
    return Observation.READY if strategy.bake_seconds is None else Observation.BAKES


def _observe_bake(view: EndpointView) -> Observation:
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
    has_baked = view.verdict == "Promote" or not view.seconds_left(strategy.bake_seconds or 0)
    return Observation.READY if has_baked else Observation.BAKES


def _has_slot(view: EndpointView) -> bool:
    """Whether a rollout may start; the first revision of an endpoint needs no slot."""
    everywhere = view.snapshot.rolling_everywhere
    has_begun = not view.has_fallback or view.has_made_room
    return has_begun or not must_wait(view.endpoint, view.wanted.profile, everywhere)
