# SPDX-License-Identifier: Apache-2.0
"""The outcome of each action of the rollout table: what the pass writes, and how it ends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from finetune_operator.api.inference_deployment import RevisionVerdict, ServedModelStatus
from finetune_operator.manifests.endpoint import build_deployment, endpoint_url, preview_url
from finetune_operator.manifests.labels import RUNNER
from finetune_operator.manifests.pod_security import build_service_account
from finetune_operator.plan import Create, Event
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import Action, find_revision
from finetune_operator.reconcile.inferencedeployment.rollout.concurrency import (
    DEFAULT_PER_NAMESPACE,
    slot_of,
)
from finetune_operator.reconcile.inferencedeployment.rollout.replica_shift import (
    awaited_message,
    awaits_stable,
    is_dead,
    num_ready,
    replicas_of,
    rolling_limits,
)
from finetune_operator.reconcile.inferencedeployment.rollout.rollout_context import RolloutContext
from finetune_operator.reconcile.inferencedeployment.traffic import ALL, pod_selector
from finetune_operator.reconcile.passes import Done, Failed, PassOutcome, Suspended, Working, earliest
from finetune_operator.status.conditions import shorten
from finetune_operator.status.reasons import EventReason, Reason


@dataclass(frozen=True, slots=True)
class RolloutOutcome:
    """The end of a pass over the wanted revision."""

    halt: PassOutcome
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


def preview(view: RolloutContext) -> RolloutOutcome:
    """Wait for a decision, or for the end of the preview."""
    name, settings = view.wanted.name, view.endpoint.spec.strategy.blue_green
    ready = f"revision {name} ({view.models}) is ready at {preview_url(view.endpoint)}; {view.serving} serves"
    seconds = settings.auto_promotion_seconds if settings is not None else None
    if seconds is None:
        advice = f"set spec.strategy.decision for revision {name} to Promote or Abort"
        return RolloutOutcome(Suspended(Reason.AWAITING_DECISION, f"{ready}: {advice}"))
    is_new = view.recorded is None or view.recorded.state != "Preview"
    left = float(seconds) if is_new else view.seconds_left(seconds)
    return RolloutOutcome(Working(Reason.PREVIEW, f"{ready} for {seconds} s", left))


def dwell(view: RolloutContext) -> RolloutOutcome:
    """Give the revision the weight of its step."""
    canary, name = view.canary, view.wanted.name
    is_new = view.recorded is None or view.recorded.state != "Canary"
    step = 0 if is_new else view.step
    if canary is None:
        raise ValueError(f"revision {name} has no steps")
    weight = canary.weight_at(step)
    pause = canary.pause_at(step)
    left = None if pause is None or pause.seconds is None else view.seconds_left(pause.seconds) or None
    message = (
        f"revision {name} ({view.models}) gets {weight} % of the requests, step {step + 1} of {canary.end};"
        f" {view.stable} gets the remaining requests"
    )
    if view.analysis is not None:
        message, left = f"{message}; {view.analysis.message}", view.analysis.requeue_after
    return RolloutOutcome(
        Working(Reason.CANARY, message, left),
        weights={view.stable: ALL - weight, name: weight},
        entry={"step": step},
    )


def await_decision(view: RolloutContext) -> RolloutOutcome:
    """Wait for a decision about a revision whose step has no end of its own."""
    name, canary = view.wanted.name, view.canary
    if canary is not None and canary.pause_at(view.step) is not None:
        why = f"step {view.step + 1} of {canary.end} pauses until a decision"
    else:
        why = view.analyzed.message if view.analyzed is not None else ""
    message = (
        f"revision {name} ({view.models}) keeps {view.weights.get(name, 0)} % of the requests, because"
        f" {why}. Set spec.strategy.decision for revision {name} to Continue, Promote or Abort"
    )
    return RolloutOutcome(Suspended(Reason.AWAITING_DECISION, message), entry={"step": view.step})


def take_step(view: RolloutContext) -> RolloutOutcome:
    """Take the next step, or the last one if a person promoted the revision."""
    end = view.canary.end if view.canary is not None else 0
    step = end if view.verdict == "Promote" else view.step + 1
    target = f"step {step + 1} of {end}" if step < end else "all requests"
    message = f"revision {view.wanted.name} ({view.models}) starts the replicas for {target}"
    pause = view.canary.pause_at(step) if view.canary is not None else None
    left = None if pause is None or pause.seconds is None else float(pause.seconds)
    return RolloutOutcome(Working(Reason.CANARY, message, left), entry={"step": step})


def bake(view: RolloutContext) -> RolloutOutcome:
    """Route all requests to the revision, and keep the previous one until the bake has ended."""
    served, halt = serve(view), _verdict(view)
    seconds = view.endpoint.spec.strategy.bake_seconds or 0
    is_new = view.recorded is None or view.recorded.state != "Baking"
    left = float(seconds) if is_new else view.seconds_left(seconds) or view.seconds_to_end_of_bake
    if isinstance(halt, Done):
        message = f"{halt.message}; {view.stable} is kept for {seconds} s after the rollout"
        if view.analysis is not None:
            message = f"{message}; revision {view.wanted.name}: {view.analysis.message}"
        halt = Done(Reason.BAKING, message)
    entry = {} if view.verdict != "Promote" else served.entry
    return replace(served, halt=replace(halt, requeue_after=left), entry=entry)


def serve(view: RolloutContext) -> RolloutOutcome:
    """Route all requests to the revision."""
    name = view.wanted.name
    is_new = view.recorded is None or view.recorded.state not in {"Baking", "Live"}
    event = Event("Normal", EventReason.ROLLOUT_SUCCEEDED, f"revision {name}: {view.models}")
    return RolloutOutcome(
        _verdict(view),
        events=(event,) if is_new else (),
        status={
            "revision": name,
            "selector": pod_selector({name: ALL}),
            "base_model_uri": _base_model_uri(view),
            "base_model_digest": view.wanted.base_digest,
            "models": _served_models(view),
        },
        weights={name: ALL},
        entry={"verdict": _passed(view)},
    )


def report(view: RolloutContext) -> RolloutOutcome:
    """Report replicas that restart or are being added after the rollout has ended."""
    ready = (view.deployment or {}).get("status", {}).get("readyReplicas", 0)
    trouble = view.trouble
    why = f": {trouble.message}" if trouble is not None else ""
    reason = trouble.reason if trouble is not None else Reason.SCALING
    message = f"{ready} of {view.endpoint.spec.replicas} replicas of {view.wanted.name} are ready{why}"
    # A regression is a pod that is not ready for as long as a start may take.
    is_baking = view.recorded is not None and view.recorded.state == "Baking"
    recheck = float(view.endpoint.spec.strategy.progress_deadline_seconds) if is_baking else None
    is_hopeless = ready == 0 and trouble is not None and trouble.final
    return RolloutOutcome(Failed(reason, message) if is_hopeless else Working(reason, message, recheck))


def fail(view: RolloutContext) -> RolloutOutcome:
    """Report why the revision cannot start."""
    failure = view.failure or ""
    return RolloutOutcome(
        Failed(Reason.ROLLOUT_FAILED, _failure_message(view, failure)),
        entry={
            "reason": Reason.ROLLOUT_FAILED,
            "message": shorten(failure),
            "verdict": RevisionVerdict(result="Failed"),
        },
    )


def roll_back(view: RolloutContext) -> RolloutOutcome:
    """Delete the Deployment of a revision that failed or was rolled back in an earlier pass."""
    failure = view.recorded.message if view.recorded is not None else ""
    if view.recorded is not None and view.recorded.state == "RolledBack":
        halt = Failed(Reason.ROLLED_BACK, _rollback_message(view, failure))
    else:
        halt = Failed(Reason.ROLLOUT_FAILED, _failure_message(view, failure))
    returns = view.wanted.name in view.weights and view.has_fallback
    return RolloutOutcome(
        halt,
        keeps_wanted=False,
        status=_stable_status(view) if view.has_fallback else {},
        weights={view.stable: ALL} if returns else None,
    )


def retain_traffic(view: RolloutContext) -> RolloutOutcome:
    """Keep the requests until the stable revision has the replicas for them."""
    why = f": {view.recorded.message}" if view.recorded is not None and view.recorded.message else ""
    message = (
        f"revision {view.wanted.name} ({view.models}) is rolled back{why}; {view.stable} gets all requests"
        " when its replicas are ready"
    )
    if is_dead(view, view.stable):
        message = f"{message}. {awaited_message(view, view.stable)}"
        return RolloutOutcome(Working(Reason.AWAITING_REPLICAS, message))
    return RolloutOutcome(Working(Reason.ROLLING_OUT, message))


def abort(view: RolloutContext) -> RolloutOutcome:
    """Return the requests, if it has any, of a revision that a person aborted, and delete it.

    It works, so it keeps its requests until the stable revision has the replicas for them.
    """
    why = _decided(view)
    outcome = _roll_back_to_stable(view, why, RevisionVerdict(result="Aborted", reason=why))
    return replace(retain_traffic(view), entry=outcome.entry) if awaits_stable(view) else outcome


def return_requests(view: RolloutContext) -> RolloutOutcome:
    """Return the requests of a revision that does not serve well to the one before it, at once.

    It keeps them as long as it has a ready pod and the one before it has none.
    """
    why = shorten(view.regression or "")
    outcome = _roll_back_to_stable(view, why, RevisionVerdict(result="Failed", reason=why))
    return replace(retain_traffic(view), entry=outcome.entry) if is_dead(view, view.stable) else outcome


def _failure_message(view: RolloutContext, failure: str) -> str:
    fallback = advice = ""
    if view.has_fallback:
        fallback = f"; {view.serving} keeps serving"
        advice = "; to retry, edit the spec, promote another checkpoint, or set strategy.decision to Promote"
    return f"revision {view.wanted.name} ({view.models}) failed: {failure}{fallback}{advice}"


def _rollback_message(view: RolloutContext, why: str) -> str:
    return (
        f"revision {view.wanted.name} ({view.models}) was rolled back: {why}; {view.stable}"
        " serves; to retry, edit the spec, promote another checkpoint, or set strategy.decision to Promote"
    )


def _roll_back_to_stable(view: RolloutContext, why: str, verdict: RevisionVerdict) -> RolloutOutcome:
    """Route all requests to the stable revision. The wanted one is deleted when they have moved."""
    return RolloutOutcome(
        Failed(Reason.ROLLED_BACK, _rollback_message(view, why)),
        keeps_wanted=False,
        status=_stable_status(view),
        weights={view.stable: ALL},
        entry={"reason": Reason.ROLLED_BACK, "message": why, "verdict": verdict},
    )


def _stable_status(view: RolloutContext) -> dict[str, Any]:
    """Fields of the status that change when the requests of the wanted revision, if it has any, return."""
    if view.wanted.name not in {*view.weights, view.endpoint.status.revision}:
        return {}
    status: dict[str, Any] = {"revision": view.stable, "selector": pod_selector({view.stable: ALL})}
    stable = find_revision(view.endpoint.status.revisions, view.stable)
    if stable is None or not stable.models:
        return status
    since = view.snapshot.now.replace(microsecond=0)
    status["models"] = tuple(
        ServedModelStatus(name=each.name, checkpoint=each.checkpoint, digest=each.digest, since=since)
        for each in stable.models
    )
    served = (view.snapshot.checkpoints.get(each.checkpoint or "") for each in stable.models)
    base = next((each.spec.lineage.base_model for each in served if each is not None), None)
    if base is None:
        # Only the digests of revisions are recorded, and not where a base model came from.
        return {**status, "base_model_uri": None}
    return {**status, "base_model_uri": base.source, "base_model_digest": base.digest}


def _base_model_uri(view: RolloutContext) -> str | None:
    """Where the base model of the wanted revision comes from; None if no weights and no spec say so."""
    recorded = (weights.base_model for _, weights in view.wanted.models)
    given = view.endpoint.spec.base_model
    sources = (base.source for base in (*recorded, given) if base is not None)
    return next(sources, None)


def _passed(view: RolloutContext) -> RevisionVerdict:
    """The verdict on a revision that gets all requests, which may have been given before its bake."""
    if view.recorded is not None and view.recorded.state == "Baking" and view.recorded.verdict is not None:
        return view.recorded.verdict
    decision = view.decision
    if decision is not None and decision.verdict == "Promote" and not view.is_retried:
        return RevisionVerdict(result="Promoted", reason=decision.reason)
    return RevisionVerdict(result="Passed")


def _decided(view: RolloutContext) -> str:
    decision = view.decision
    reason = f": {decision.reason}" if decision is not None and decision.reason else ""
    return f"aborted by spec.strategy.decision{reason}"


def _verdict(view: RolloutContext) -> Working | Failed | Done:
    problems = view.targets.problems
    held_back = "; ".join(problem.problem for problem in problems)
    hard = [p for p in problems if p.reason and p.reason != Reason.WAITING_FOR_CHECKPOINT]
    if hard:
        return Failed(hard[0].reason or Reason.INVALID_SPEC, held_back)
    if any(problem.weights is None for problem in problems):
        return Working(Reason.WAITING_FOR_CHECKPOINT, held_back)
    serving = f"serving {view.models} at {endpoint_url(view.endpoint)}"
    return Done(Reason.SERVING, f"{serving}; {held_back}" if held_back else serving)


def _served_models(view: RolloutContext) -> tuple[ServedModelStatus, ...]:
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


def postpone(view: RolloutContext) -> RolloutOutcome:
    """Wait for the first replica, because only a replica shows whether the revision can serve."""
    until = f"; {view.serving} serves until then" if view.serving else ""
    message = (
        f"spec.replicas is 0: revision {view.wanted.name} ({view.models}) starts with the first"
        f" replica{until}"
    )
    return RolloutOutcome(Done(Reason.SCALED_TO_ZERO, message), keeps_wanted=False)


def refuse(view: RolloutContext) -> RolloutOutcome:
    """Report the replicas that the weights of the steps need."""
    needed = view.canary.needed_replicas if view.canary is not None else None
    message = (
        f"revision {view.wanted.name} ({view.models}) does not start: with spec.replicas"
        f" {view.endpoint.spec.replicas} one replica gets more requests than a step of canary allows. Set"
        f" spec.replicas to {needed} or more, raise setWeight, or set canary.allowCoarseWeights"
    )
    return RolloutOutcome(Failed(Reason.WEIGHT_NOT_ACHIEVABLE, message), keeps_wanted=False)


def hold(view: RolloutContext) -> RolloutOutcome:
    """Report the pause."""
    until = f"; {view.serving} serves" if view.has_fallback else ""
    message = f"spec.strategy.paused is true: revision {view.wanted.name} ({view.models}) waits{until}"
    return RolloutOutcome(Suspended(Reason.PAUSED, message))


def queue(view: RolloutContext) -> RolloutOutcome:
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


def scale_down_others(view: RolloutContext) -> RolloutOutcome:
    """End the pods of the other revisions, which keep answering until they have finished their requests."""
    others, name = ", ".join(view.others), view.wanted.name
    message = f"revision {name} ({view.models}) starts when the pods of {others} have ended"
    events: tuple[Event, ...] = ()
    if not view.has_made_room:
        why = f"strategy {view.endpoint.spec.strategy.type}"
        if view.shortage is not None:
            why = f"strategy.fallback, because there is no capacity for both: {view.shortage}"
        text = shorten(f"stopping the pods of {others} to start revision {name}, by {why}")
        events = (Event("Normal", EventReason.ROOM_MADE, text),)
    return RolloutOutcome(Working(Reason.ROLLING_OUT, message, view.seconds_to_room), events=events)


def start(view: RolloutContext) -> RolloutOutcome:
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


def wait_for_capacity(view: RolloutContext) -> RolloutOutcome:
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


def wait(view: RolloutContext) -> RolloutOutcome:
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


OUTCOMES: Final[Mapping[Action, Callable[[RolloutContext], RolloutOutcome]]] = {
    Action.POSTPONE: postpone,
    Action.ABORT: abort,
    Action.RETAIN_TRAFFIC: retain_traffic,
    Action.REFUSE: refuse,
    Action.HOLD: hold,
    Action.QUEUE: queue,
    Action.SCALE_DOWN_OTHERS: scale_down_others,
    Action.START: start,
    Action.WAIT_FOR_CAPACITY: wait_for_capacity,
    Action.WAIT: wait,
    Action.SERVE: serve,
    Action.PREVIEW: preview,
    Action.DWELL: dwell,
    Action.AWAIT_DECISION: await_decision,
    Action.STEP: take_step,
    Action.BAKE: bake,
    Action.RETURN: return_requests,
    Action.REPORT: report,
    Action.FAIL: fail,
    Action.ROLL_BACK: roll_back,
}
"""Outcomes for the wanted revision; other revisions are only removed."""
