"""The outcome of a pass for each action of the rollout table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_operator.api.endpointstatus import RevisionVerdict, ServedModelStatus
from finetune_operator.manifests.labels import RUNNER
from finetune_operator.manifests.serviceaccount import build_service_account
from finetune_operator.manifests.serving import build_deployment, endpoint_url
from finetune_operator.plan import Create, Event
from finetune_operator.reconcile.inferencedeployment.traffic import ALL, pod_selector
from finetune_operator.reconcile.inferencedeployment.transitions import Action
from finetune_operator.reconcile.inferencedeployment.view import EndpointView
from finetune_operator.reconcile.steps import Done, Failed, Halt, Suspended, Working
from finetune_operator.status.conditions import shortened
from finetune_operator.status.reasons import EventReason, Reason


@dataclass(frozen=True, slots=True)
class RolloutOutcome:
    """The end of a pass over the wanted revision."""

    halt: Halt
    create: tuple[Create, ...] = ()
    events: tuple[Event, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the endpoint's status that change."""
    weights: Mapping[str, int] | None = None
    """Percent of the requests by revision after this pass; None: unchanged."""
    keeps_wanted: bool = True
    """Whether the wanted revision keeps its Deployment."""
    entry: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the revision's entry in the status, besides name, state and specHash."""


def postpone(view: EndpointView) -> RolloutOutcome:
    """Wait for the first replica, because only a replica shows whether the revision can serve."""
    until = f"; {view.serving} serves until then" if view.serving else ""
    message = (
        f"spec.replicas is 0: revision {view.wanted.name} ({view.models}) starts with the first"
        f" replica{until}"
    )
    return RolloutOutcome(Done(Reason.SCALED_TO_ZERO, message), keeps_wanted=False)


def abort(view: EndpointView) -> RolloutOutcome:
    """Delete the Deployment of a revision that a person aborted."""
    why = _decided(view)
    return RolloutOutcome(
        Failed(Reason.ROLLED_BACK, _rollback_message(view, why)),
        keeps_wanted=False,
        entry={
            "reason": Reason.ROLLED_BACK,
            "message": why,
            "verdict": RevisionVerdict(result="Aborted", reason=why),
        },
    )


def hold(view: EndpointView) -> RolloutOutcome:
    """Report the pause."""
    until = f"; {view.serving} serves" if view.has_fallback else ""
    message = f"spec.strategy.paused is true: revision {view.wanted.name} ({view.models}) waits{until}"
    return RolloutOutcome(Suspended(Reason.PAUSED, message))


def queue(view: EndpointView) -> RolloutOutcome:
    """Wait for a slot. The message does not name the endpoints that hold one, to save status writes."""
    profile = view.wanted.profile
    message = (
        f"revision {view.wanted.name} ({view.models}) waits until other endpoints have rolled"
        f" out: ComputeProfile {profile.name} has maxConcurrentRollouts"
        f" {profile.spec.max_concurrent_rollouts}"
    )
    return RolloutOutcome(Working(Reason.QUEUED, message))


def make_room(view: EndpointView) -> RolloutOutcome:
    """End the pods of the others, which keep answering until they have finished their requests."""
    others, name = ", ".join(view.others), view.wanted.name
    message = f"revision {name} ({view.models}) starts when the pods of {others} have ended"
    events: tuple[Event, ...] = ()
    if not view.has_made_room:
        why = f"strategy {view.endpoint.spec.strategy.type}"
        if view.shortage is not None:
            why = f"strategy.fallback, because there is no capacity for both: {view.shortage}"
        text = shortened(f"stopping the pods of {others} to start revision {name}, by {why}")
        events = (Event("Normal", EventReason.ROOM_MADE, text),)
    return RolloutOutcome(Working(Reason.ROLLING_OUT, message), events=events)


def start(view: EndpointView) -> RolloutOutcome:
    """Create the Deployment. The first revision gets all requests at once, because no other one can serve."""
    facts = view.snapshot.facts
    deployment = build_deployment(view.endpoint, view.wanted, facts.trainer_image, facts.image_pull_policy)
    creates = [Create(deployment)]
    if RUNNER not in view.snapshot.service_accounts:
        creates.insert(0, Create(build_service_account(view.endpoint.namespace, RUNNER), same="Any"))
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
    if not view.has_fallback:
        reason = view.trouble.reason if view.trouble is not None else Reason.UNSCHEDULABLE
        return RolloutOutcome(Working(reason, f"revision {name} is not ready: {shortage}"))
    message = (
        f"revision {name} ({view.models}) starts when there is room for it; {view.serving} serves until then:"
        f" {shortage}"
    )
    return RolloutOutcome(Working(Reason.NO_CAPACITY_FOR_SURGE, message, view.seconds_to_fallback))


def wait(view: EndpointView) -> RolloutOutcome:
    """Report why the pods are not ready yet."""
    name, trouble = view.wanted.name, view.trouble
    left = view.seconds_to_deadline or None
    if trouble is None:
        return RolloutOutcome(Working(Reason.ROLLING_OUT, f"revision {name} is starting", left))
    return RolloutOutcome(Working(trouble.reason, f"revision {name} is not ready: {trouble.message}", left))


def serve(view: EndpointView) -> RolloutOutcome:
    """Route all requests to the revision."""
    name = view.wanted.name
    is_new = view.recorded is None or view.recorded.state != "Live"
    event = Event("Normal", EventReason.ROLLOUT_SUCCEEDED, f"revision {name}: {view.models}")
    return RolloutOutcome(
        _verdict(view),
        events=(event,) if is_new else (),
        status={
            "revision": name,
            "selector": pod_selector({name: ALL}),
            "base_model_digest": view.wanted.base_digest,
            "models": _served_models(view),
        },
        weights={name: ALL},
        entry={"verdict": RevisionVerdict(result="Passed")},
    )


def report(view: EndpointView) -> RolloutOutcome:
    """Report replicas that restart or are being added after the rollout has ended."""
    ready = (view.deployment or {}).get("status", {}).get("readyReplicas", 0)
    trouble = view.trouble
    why = f": {trouble.message}" if trouble is not None else ""
    reason = trouble.reason if trouble is not None else Reason.SCALING
    message = f"{ready} of {view.endpoint.spec.replicas} replicas of {view.wanted.name} are ready{why}"
    is_hopeless = ready == 0 and trouble is not None and trouble.final
    return RolloutOutcome(Failed(reason, message) if is_hopeless else Working(reason, message))


def fail(view: EndpointView) -> RolloutOutcome:
    """Report why the revision cannot start."""
    failure = view.failure or ""
    return RolloutOutcome(
        Failed(Reason.ROLLOUT_FAILED, _failure_message(view, failure)),
        entry={
            "reason": Reason.ROLLOUT_FAILED,
            "message": shortened(failure),
            "verdict": RevisionVerdict(result="Failed"),
        },
    )


def roll_back(view: EndpointView) -> RolloutOutcome:
    """Delete the Deployment of a revision that failed or was rolled back in an earlier pass."""
    failure = view.recorded.message if view.recorded is not None else ""
    if view.recorded is not None and view.recorded.state == "RolledBack":
        halt = Failed(Reason.ROLLED_BACK, _rollback_message(view, failure))
    else:
        halt = Failed(Reason.ROLLOUT_FAILED, _failure_message(view, failure))
    return RolloutOutcome(halt, keeps_wanted=False)


OUTCOMES: Final[Mapping[Action, Callable[[EndpointView], RolloutOutcome]]] = {
    Action.POSTPONE: postpone,
    Action.ABORT: abort,
    Action.HOLD: hold,
    Action.QUEUE: queue,
    Action.MAKE_ROOM: make_room,
    Action.START: start,
    Action.WAIT_FOR_CAPACITY: wait_for_capacity,
    Action.WAIT: wait,
    Action.SERVE: serve,
    Action.REPORT: report,
    Action.FAIL: fail,
    Action.ROLL_BACK: roll_back,
}
"""Outcomes for the wanted revision; other revisions are only removed."""


def _failure_message(view: EndpointView, failure: str) -> str:
    fallback = advice = ""
    if view.has_fallback:
        fallback = f"; {view.serving} keeps serving"
        advice = "; to retry, edit the spec, promote another checkpoint, or set strategy.decision to Promote"
    return f"revision {view.wanted.name} ({view.models}) failed: {failure}{fallback}{advice}"


def _rollback_message(view: EndpointView, why: str) -> str:
    return (
        f"revision {view.wanted.name} ({view.models}) was rolled back: {why}; {view.serving} keeps"
        " serving; to retry, edit the spec, promote another checkpoint, or set strategy.decision to Promote"
    )


def _decided(view: EndpointView) -> str:
    decision = view.decision
    reason = f": {decision.reason}" if decision is not None and decision.reason else ""
    return f"aborted by spec.strategy.decision{reason}"


def _verdict(view: EndpointView) -> Halt:
    problems = view.targets.problems
    held_back = "; ".join(problem.problem for problem in problems)
    hard = [p for p in problems if p.reason and p.reason != Reason.WAITING_FOR_CHECKPOINT]
    if hard:
        return Failed(hard[0].reason or Reason.INVALID_SPEC, held_back)
    if any(problem.weights is None for problem in problems):
        return Working(Reason.WAITING_FOR_CHECKPOINT, held_back)
    serving = f"serving {view.models} at {endpoint_url(view.endpoint)}"
    return Done(Reason.SERVING, f"{serving}; {held_back}" if held_back else serving)


def _served_models(view: EndpointView) -> tuple[ServedModelStatus, ...]:
    before = {model.name: model for model in view.endpoint.status.models}
    served = []
    for name, weights in view.wanted.models:
        old = before.get(name)
        if old is None or (old.checkpoint, old.digest) != (weights.checkpoint, weights.digest):
            since = view.snapshot.now.replace(microsecond=0)
            old = ServedModelStatus(
                name=name, checkpoint=weights.checkpoint, digest=weights.digest, since=since
            )
        served.append(old)
    return tuple(served)
