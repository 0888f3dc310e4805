# SPDX-License-Identifier: Apache-2.0
"""The outcomes of actions on a revision that is ready, serves, or has failed."""

from dataclasses import replace
from typing import Any

from finetune_operator.api.inference_deployment import RevisionVerdict, ServedModelStatus
from finetune_operator.manifests.endpoint import endpoint_url, preview_url
from finetune_operator.plan import Event
from finetune_operator.reconcile.inferencedeployment.revision.history import find_revision
from finetune_operator.reconcile.inferencedeployment.rollout.outcome import RolloutOutcome
from finetune_operator.reconcile.inferencedeployment.rollout.sharing import (
    awaited_message,
    awaits_stable,
    is_dead,
)
from finetune_operator.reconcile.inferencedeployment.rollout.view import EndpointView
from finetune_operator.reconcile.inferencedeployment.traffic.routing import ALL, pod_selector
from finetune_operator.reconcile.steps import Done, Failed, Suspended, Working
from finetune_operator.status.conditions import shortened
from finetune_operator.status.reasons import EventReason, Reason


def preview(view: EndpointView) -> RolloutOutcome:
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


def dwell(view: EndpointView) -> RolloutOutcome:
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


def ask(view: EndpointView) -> RolloutOutcome:
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


def take_step(view: EndpointView) -> RolloutOutcome:
    """Take the next step, or the last one if a person promoted the revision."""
    end = view.canary.end if view.canary is not None else 0
    step = end if view.verdict == "Promote" else view.step + 1
    target = f"step {step + 1} of {end}" if step < end else "all requests"
    message = f"revision {view.wanted.name} ({view.models}) starts the replicas for {target}"
    pause = view.canary.pause_at(step) if view.canary is not None else None
    left = None if pause is None or pause.seconds is None else float(pause.seconds)
    return RolloutOutcome(Working(Reason.CANARY, message, left), entry={"step": step})


def bake(view: EndpointView) -> RolloutOutcome:
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


def serve(view: EndpointView) -> RolloutOutcome:
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


def report(view: EndpointView) -> RolloutOutcome:
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
    returns = view.wanted.name in view.weights and view.has_fallback
    return RolloutOutcome(
        halt,
        keeps_wanted=False,
        status=_stable_status(view) if view.has_fallback else {},
        weights={view.stable: ALL} if returns else None,
    )


def give_back(view: EndpointView) -> RolloutOutcome:
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


def abort(view: EndpointView) -> RolloutOutcome:
    """Return the requests, if it has any, of a revision that a person aborted, and delete it.

    It works, so it keeps its requests until the stable revision has the replicas for them.
    """
    why = _decided(view)
    outcome = _roll_back_to_stable(view, why, RevisionVerdict(result="Aborted", reason=why))
    return replace(give_back(view), entry=outcome.entry) if awaits_stable(view) else outcome


def return_requests(view: EndpointView) -> RolloutOutcome:
    """Return the requests of a revision that does not serve well to the one before it, at once.

    It keeps them as long as it has a ready pod and the one before it has none.
    """
    why = shortened(view.regression or "")
    outcome = _roll_back_to_stable(view, why, RevisionVerdict(result="Failed", reason=why))
    return replace(give_back(view), entry=outcome.entry) if is_dead(view, view.stable) else outcome


def _failure_message(view: EndpointView, failure: str) -> str:
    fallback = advice = ""
    if view.has_fallback:
        fallback = f"; {view.serving} keeps serving"
        advice = "; to retry, edit the spec, promote another checkpoint, or set strategy.decision to Promote"
    return f"revision {view.wanted.name} ({view.models}) failed: {failure}{fallback}{advice}"


def _rollback_message(view: EndpointView, why: str) -> str:
    return (
        f"revision {view.wanted.name} ({view.models}) was rolled back: {why}; {view.stable}"
        " serves; to retry, edit the spec, promote another checkpoint, or set strategy.decision to Promote"
    )


def _roll_back_to_stable(view: EndpointView, why: str, verdict: RevisionVerdict) -> RolloutOutcome:
    """Route all requests to the stable revision. The wanted one is deleted when they have moved."""
    return RolloutOutcome(
        Failed(Reason.ROLLED_BACK, _rollback_message(view, why)),
        keeps_wanted=False,
        status=_stable_status(view),
        weights={view.stable: ALL},
        entry={"reason": Reason.ROLLED_BACK, "message": why, "verdict": verdict},
    )


def _stable_status(view: EndpointView) -> dict[str, Any]:
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


def _base_model_uri(view: EndpointView) -> str | None:
    """Where the base model of the wanted revision comes from; None if no weights and no spec say so."""
    recorded = (weights.base_model for _, weights in view.wanted.models)
    given = view.endpoint.spec.base_model
    sources = (base.source for base in (*recorded, given) if base is not None)
    return next(sources, None)


def _passed(view: EndpointView) -> RevisionVerdict:
    """The verdict on a revision that gets all requests, which may have been given before its bake."""
    if view.recorded is not None and view.recorded.state == "Baking" and view.recorded.verdict is not None:
        return view.recorded.verdict
    decision = view.decision
    if decision is not None and decision.verdict == "Promote" and not view.is_retried:
        return RevisionVerdict(result="Promoted", reason=decision.reason)
    return RevisionVerdict(result="Passed")


def _decided(view: EndpointView) -> str:
    decision = view.decision
    reason = f": {decision.reason}" if decision is not None and decision.reason else ""
    return f"aborted by spec.strategy.decision{reason}"


def _verdict(view: EndpointView) -> Working | Failed | Done:
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
