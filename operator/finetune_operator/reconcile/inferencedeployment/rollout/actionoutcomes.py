# SPDX-License-Identifier: Apache-2.0
"""The outcome of a pass for each action of the rollout table."""

from collections.abc import Callable, Mapping
from typing import Final

from finetune_operator.manifests.endpoint import build_deployment
from finetune_operator.manifests.labels import RUNNER
from finetune_operator.manifests.pod_security import build_service_account
from finetune_operator.plan import Create, Event
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import Action
from finetune_operator.reconcile.inferencedeployment.rollout import readyoutcomes
from finetune_operator.reconcile.inferencedeployment.rollout.concurrency import (
    DEFAULT_PER_NAMESPACE,
    slot_of,
)
from finetune_operator.reconcile.inferencedeployment.rollout.outcome import RolloutOutcome
from finetune_operator.reconcile.inferencedeployment.rollout.replicas import replicas_of
from finetune_operator.reconcile.inferencedeployment.rollout.sharing import num_ready, rolling_limits
from finetune_operator.reconcile.inferencedeployment.rollout.view import EndpointView
from finetune_operator.reconcile.inferencedeployment.traffic.routeaccepted import earliest
from finetune_operator.reconcile.inferencedeployment.traffic.routing import ALL
from finetune_operator.reconcile.steps import Done, Failed, Suspended, Working
from finetune_operator.status.conditions import shortened
from finetune_operator.status.reasons import EventReason, Reason


def postpone(view: EndpointView) -> RolloutOutcome:
    """Wait for the first replica, because only a replica shows whether the revision can serve."""
    until = f"; {view.serving} serves until then" if view.serving else ""
    message = (
        f"spec.replicas is 0: revision {view.wanted.name} ({view.models}) starts with the first"
        f" replica{until}"
    )
    return RolloutOutcome(Done(Reason.SCALED_TO_ZERO, message), keeps_wanted=False)


def refuse(view: EndpointView) -> RolloutOutcome:
    """Report the replicas that the weights of the steps need."""
    needed = view.canary.needed_replicas if view.canary is not None else None
    message = (
        f"revision {view.wanted.name} ({view.models}) does not start: with spec.replicas"
        f" {view.endpoint.spec.replicas} one replica gets more requests than a step of canary allows. Set"
        f" spec.replicas to {needed} or more, raise setWeight, or set canary.allowCoarseWeights"
    )
    return RolloutOutcome(Failed(Reason.WEIGHT_NOT_ACHIEVABLE, message), keeps_wanted=False)


def hold(view: EndpointView) -> RolloutOutcome:
    """Report the pause."""
    until = f"; {view.serving} serves" if view.has_fallback else ""
    message = f"spec.strategy.paused is true: revision {view.wanted.name} ({view.models}) waits{until}"
    return RolloutOutcome(Suspended(Reason.PAUSED, message))


def queue(view: EndpointView) -> RolloutOutcome:
    """Wait for a slot. The message does not name the endpoints that hold one, to save status writes."""
    profile = view.wanted.profile
    limit = profile.spec.limits.concurrent_rollouts
    allowed = f"limits.concurrentRollouts {limit}"
    if limit is None:
        allowed = f"no limits.concurrentRollouts, which allows {DEFAULT_PER_NAMESPACE} per namespace"
    message = (
        f"revision {view.wanted.name} ({view.models}) waits until other endpoints have rolled"
        f" out: ComputeProfile {profile.name} has {allowed}"
    )
    snapshot = view.snapshot
    slot = slot_of(
        view.endpoint, profile, snapshot.rolling_everywhere, snapshot.queued_everywhere, snapshot.now
    )
    return RolloutOutcome(Working(Reason.QUEUED, message, slot.recheck_seconds))


def make_room(view: EndpointView) -> RolloutOutcome:
    """End the pods of the other revisions, which keep answering until they have finished their requests."""
    others, name = ", ".join(view.others), view.wanted.name
    message = f"revision {name} ({view.models}) starts when the pods of {others} have ended"
    events: tuple[Event, ...] = ()
    if not view.has_made_room:
        why = f"strategy {view.endpoint.spec.strategy.type}"
        if view.shortage is not None:
            why = f"strategy.fallback, because there is no capacity for both: {view.shortage}"
        text = shortened(f"stopping the pods of {others} to start revision {name}, by {why}")
        events = (Event("Normal", EventReason.ROOM_MADE, text),)
    return RolloutOutcome(Working(Reason.ROLLING_OUT, message, view.seconds_to_room), events=events)


def start(view: EndpointView) -> RolloutOutcome:
    """Create the Deployment. The first revision gets all requests at once, because no other one can serve."""
    facts = view.snapshot.facts
    deployment = build_deployment(view.endpoint, view.wanted, facts.trainer_image, facts.image_pull_policy)
    deployment["spec"]["replicas"] = replicas_of(view, "RollingOut")[view.wanted.name]
    creates = [Create(deployment)]
    if RUNNER not in view.snapshot.service_accounts:
        account = build_service_account(view.endpoint.namespace, RUNNER, facts.accounts)
        creates.insert(0, Create(account, same="Any"))
    message = f"revision {view.wanted.name}: {view.models}"
    return RolloutOutcome(
        Working(Reason.ROLLING_OUT, f"{message} is starting"),
        create=tuple(creates),
        events=(Event("Normal", EventReason.ROLLOUT_STARTED, message),),
        weights=None if view.weights else {view.wanted.name: ALL},
    )


def wait_for_capacity(view: EndpointView) -> RolloutOutcome:
    """Report the resources that are missing. The pods start by themselves when these are free."""
    name, shortage = view.wanted.name, view.shortage or ""
    later = None if view.trouble is None else view.trouble.recheck_after_seconds
    if not view.has_fallback:
        reason = view.trouble.reason if view.trouble is not None else Reason.UNSCHEDULABLE
        return RolloutOutcome(Working(reason, f"revision {name} is not ready: {shortage}", later))
    message = (
        f"revision {name} ({view.models}) starts when there is room for it; {view.serving} serves until then:"
        f" {shortage}"
    )
    return RolloutOutcome(
        Working(Reason.NO_CAPACITY_FOR_SURGE, message, earliest(view.seconds_to_fallback, later))
    )


def wait(view: EndpointView) -> RolloutOutcome:
    """Report why the pods are not ready yet."""
    name, trouble = view.wanted.name, view.trouble
    left = view.seconds_to_deadline or None
    if view.recorded is not None and view.recorded.state == "Canary":
        # A pod that is not ready for as long as a start may take ends the canary.
        left = float(view.endpoint.spec.strategy.progress_deadline_seconds)
    starting = f"revision {name} is starting"
    if rolling_limits(view) is not None:
        starting = (
            f"{num_ready(view, name)} of {view.endpoint.spec.replicas} replicas of revision {name} are ready"
        )
        left = min((each for each in (left, view.seconds_to_room) if each is not None), default=None)
    if trouble is None:
        return RolloutOutcome(Working(Reason.ROLLING_OUT, starting, left))
    return RolloutOutcome(Working(trouble.reason, f"revision {name} is not ready: {trouble.message}", left))


OUTCOMES: Final[Mapping[Action, Callable[[EndpointView], RolloutOutcome]]] = {
    Action.POSTPONE: postpone,
    Action.ABORT: readyoutcomes.abort,
    Action.GIVE_BACK: readyoutcomes.give_back,
    Action.REFUSE: refuse,
    Action.HOLD: hold,
    Action.QUEUE: queue,
    Action.MAKE_ROOM: make_room,
    Action.START: start,
    Action.WAIT_FOR_CAPACITY: wait_for_capacity,
    Action.WAIT: wait,
    Action.SERVE: readyoutcomes.serve,
    Action.PREVIEW: readyoutcomes.preview,
    Action.DWELL: readyoutcomes.dwell,
    Action.ASK: readyoutcomes.ask,
    Action.STEP: readyoutcomes.take_step,
    Action.BAKE: readyoutcomes.bake,
    Action.RETURN: readyoutcomes.return_requests,
    Action.REPORT: readyoutcomes.report,
    Action.FAIL: readyoutcomes.fail,
    Action.ROLL_BACK: readyoutcomes.roll_back,
}
"""Outcomes for the wanted revision; other revisions are only removed."""
