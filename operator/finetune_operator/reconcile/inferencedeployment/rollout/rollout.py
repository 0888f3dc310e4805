# SPDX-License-Identifier: Apache-2.0
"""Move an endpoint toward the revision that it should serve, by one transition per pass.

A revision serves if requests are routed to it (`traffic.py`). A new revision starts next to the old one. When
it is ready, the requests move to it, and then the old one is deleted. `revision_states.py` has the rules, and
`rollout_actions.py` what each action writes. This module adds what follows from the next state:

- Revisions that are neither wanted nor serve are deleted.
- The preview Service exists only while a revision is in preview.
- A Deployment whose pods cannot start is created again if a new one would have other pods. Most fields of the
  profile's `pods` are not part of a revision's name, so their correction makes no new revision.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from finetune_operator.api.inference_deployment import ObeyedDecision, RevisionModel, RevisionStatus
from finetune_operator.api.labels import REVISION
from finetune_operator.engine.resources import DEPLOYMENT, POD, SERVICE
from finetune_operator.manifests.endpoint import build_deployment, build_preview_service, preview_name
from finetune_operator.manifests.pod_origin import find_changed_origin
from finetune_operator.observe.pod_status import has_started
from finetune_operator.plan import Apply, Create, Delete, Plan
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import (
    REJECTED_STATES,
    TRANSITIONS,
    UNVERIFIED_STATES,
    Action,
    Observation,
    State,
    find_revision,
    transition,
    with_entry,
)
from finetune_operator.reconcile.inferencedeployment.rollout.analysis import analysis_draft
from finetune_operator.reconcile.inferencedeployment.rollout.observation import (
    has_slot,
    is_held,
    observe,
    state_of,
)
from finetune_operator.reconcile.inferencedeployment.rollout.replica_shift import (
    awaited_message,
    awaits_stable,
    has_lost_its_share,
    is_complete,
    is_dead,
    replicas_of,
    returning_replicas,
    returns_to,
    rolling_limits,
    weights_by_replicas,
)
from finetune_operator.reconcile.inferencedeployment.rollout.rollout_actions import OUTCOMES, RolloutOutcome
from finetune_operator.reconcile.inferencedeployment.rollout.rollout_context import RolloutContext
from finetune_operator.reconcile.inferencedeployment.traffic import ALL
from finetune_operator.reconcile.passes import Working
from finetune_operator.status.reasons import Reason


class PreviewWrites(NamedTuple):
    """Writes of the preview Service."""

    create: tuple[Create, ...] = ()
    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()


def preview_writes(view: RolloutContext, *, exists: bool) -> PreviewWrites:
    """Point the preview Service at the wanted revision, or delete it if it should not exist."""
    service = view.snapshot.children[SERVICE].get(preview_name(view.endpoint))
    name = view.wanted.name
    if not exists:
        return PreviewWrites(delete=() if service is None else (Delete(service, "Background"),))
    if service is None:
        return PreviewWrites(create=(Create(build_preview_service(view.endpoint, name)),))
    if service["spec"].get("selector", {}).get(REVISION) == name:
        return PreviewWrites()
    uid = service["metadata"]["uid"]
    return PreviewWrites(apply=(Apply(build_preview_service(view.endpoint, name, uid)),))


def recreate_deployment(view: RolloutContext) -> Plan | None:
    """Delete the wanted revision's Deployment, so that another pass creates it. None: it stays.

    It stays if another one would not be created at once.
    """
    deployment, trouble, facts = view.deployment, view.trouble, view.snapshot.facts
    if deployment is None or trouble is None or trouble.reason == Reason.QUEUED:
        return None
    if state_of(view) not in UNVERIFIED_STATES or is_held(view) or not has_slot(view) or _has_started(view):
        return None
    cause = find_changed_origin(
        deployment,
        build_deployment(view.endpoint, view.wanted, facts.trainer_image, facts.image_pull_policy),
        images_count=trouble.reason == Reason.IMAGE_UNAVAILABLE,
    )
    if cause is None:
        return None
    message = (
        f"revision {view.wanted.name}, of which no pod has started, is created again: {cause} has changed"
    )
    return view.observed.plan(
        Working(Reason.ROLLING_OUT, message), delete=(Delete(deployment, "Background"),)
    )


def _has_started(view: RolloutContext) -> bool:
    """Whether a container of the wanted revision runs or has run."""
    return any(
        has_started(pod)
        for pod in view.snapshot.children[POD].values()
        if pod["metadata"].get("labels", {}).get(REVISION) == view.wanted.name
    )


HAS_REQUESTS: Final = frozenset({"Canary", "Baking", "Live"})
"""States after a pass in which the wanted revision may keep the requests that it has."""


STARTS: Final = frozenset({Action.QUEUE, Action.SCALE_DOWN_OTHERS, Action.START})
"""Actions of a revision without a Deployment that will have one without another decision of a person."""


def may_start(view: RolloutContext) -> bool:
    """Whether the wanted revision, which has no Deployment, starts now or when there is room for it."""
    if has_lost_its_share(view):
        return False
    state = state_of(view)
    return transition(state, observe(view, state)).action in STARTS


def roll_out(view: RolloutContext) -> Plan:
    """Take the next transition, and delete revisions that are neither wanted nor serve."""
    if has_lost_its_share(view):
        return _return_to_one(view)
    again = recreate_deployment(view)
    if again is not None:
        return again
    before = state_of(view)
    state, action = transition(before, observe(view, before))
    outcome = OUTCOMES[action](view)
    routed = _routed(view, state, outcome)
    kept = {*view.weights, *routed}
    if outcome.keeps_wanted:
        kept.add(view.wanted.name)
    if state == "Baking" or (state in REJECTED_STATES and outcome.keeps_wanted):
        kept |= {view.standby, view.predecessor}
    removed = [name for name in view.snapshot.children[DEPLOYMENT] if name not in kept]
    replaced = [name for name in (*view.weights, view.predecessor) if name not in routed]
    revisions = _with_wanted(view, state, outcome)
    for name in routed:
        if name != view.wanted.name:
            revisions = _with_unwanted(view, name, Observation.RESTORED, revisions)
    for name in (*replaced, *removed):
        seen = Observation.STANDBY if state == "Baking" and name in replaced else Observation.UNWANTED
        revisions = _with_unwanted(view, name, seen, revisions)
    replicas = replicas_of(view, state if outcome.keeps_wanted else "Pending", outcome.entry.get("step"))
    scaled = view.observed.replica_applies(
        {name: count for name, count in replicas.items() if name in kept and name not in replaced}
    )
    restored, events = view.observed.corrections(*kept)
    may_start = action in {Action.DWELL, Action.BAKE}
    analysis = analysis_draft(view.analysis, view.snapshot, may_start=may_start)
    preview = preview_writes(view, exists=state == "Preview" and outcome.keeps_wanted)
    return view.observed.plan(
        outcome.halt,
        create=(*outcome.create, *preview.create, *analysis.create),
        apply=(*scaled, *restored, *preview.apply),
        delete=(
            *(Delete(view.snapshot.children[DEPLOYMENT][name], "Background") for name in removed),
            *preview.delete,
            *analysis.delete,
        ),
        events=(*outcome.events, *events),
        revisions=revisions,
        update={**outcome.status, **_obeyed(view, state, action)},
        weights=routed,
    )


def _routed(view: RolloutContext, state: State, outcome: RolloutOutcome) -> Mapping[str, int]:
    """Percent of the requests by revision after this pass, in which the wanted one gets this state."""
    name = view.wanted.name
    routed = view.weights if outcome.weights is None else outcome.weights
    is_replacing = rolling_limits(view) is not None and state in {"RollingOut", "WaitingForCapacity"}
    returns = (
        awaits_stable(view)
        if state in REJECTED_STATES
        else name in view.weights and is_dead(view, view.stable)
    )
    may_serve = outcome.keeps_wanted and (state in HAS_REQUESTS or is_replacing or returns)
    if not may_serve and (view.others or view.predecessor):
        routed = {each: weight for each, weight in routed.items() if each != name}
        return routed if sum(routed.values()) == ALL else {view.stable: ALL}
    if is_replacing and not view.endpoint.spec.strategy.paused:
        return weights_by_replicas(view)
    return routed


def _return_to_one(view: RolloutContext) -> Plan:
    """Route all requests to the revision that serves, which first gets the replicas for them.

    Another one has a share that it may not have any more. The wanted revision starts in a later pass: a
    Service that splits requests selects every revision.
    """
    stable = returns_to(view)
    replicas = returning_replicas(view, stable)
    if is_dead(view, stable):
        halt = Working(Reason.AWAITING_REPLICAS, awaited_message(view, stable))
        return view.observed.plan(halt, apply=view.observed.replica_applies(replicas))
    if not is_complete(view, stable):
        message = f"{stable} gets all requests when its {view.endpoint.spec.replicas} replicas are ready"
        halt = Working(Reason.ROLLING_OUT, message)
        return view.observed.plan(halt, apply=view.observed.replica_applies(replicas))
    revisions = view.endpoint.status.revisions
    for name in view.weights:
        if name != stable:
            revisions = _with_unwanted(view, name, Observation.UNWANTED, revisions)
    message = f"{stable} gets all requests"
    if stable != view.wanted.name:
        message = f"{message} before revision {view.wanted.name} ({view.models}) starts"
    return view.observed.plan(
        Working(Reason.ROLLING_OUT, message),
        apply=view.observed.replica_applies(replicas),
        revisions=revisions,
        weights={stable: ALL},
    )


def _with_wanted(view: RolloutContext, state: State, outcome: RolloutOutcome) -> tuple[RevisionStatus, ...]:
    if state == "Pending":
        return view.endpoint.status.revisions
    entry = RevisionStatus(
        name=view.wanted.name,
        state=state,
        step=view.step if state == "Canary" else None,
        analysis=None if state in UNVERIFIED_STATES else view.analyzed,
        spec_hash=view.spec_hash if state in {"RollingOut", *REJECTED_STATES} else "",
        models=tuple(
            RevisionModel(name=name, checkpoint=weights.checkpoint, digest=weights.digest)
            for name, weights in view.wanted.models
        ),
    ).model_copy(update=dict(outcome.entry))
    return with_entry(view.endpoint.status.revisions, entry, view.snapshot.now)


def _with_unwanted(
    view: RolloutContext, name: str, seen: Observation, revisions: tuple[RevisionStatus, ...]
) -> tuple[RevisionStatus, ...]:
    """The list after a change of the requests or the Deployment of a revision that is not wanted."""
    before = find_revision(revisions, name)
    if before is None or (seen is not Observation.UNWANTED and (before.state, seen) not in TRANSITIONS):
        return revisions
    state = transition(before.state, seen).state
    if state in {"Pending", before.state}:
        return revisions
    entry = RevisionStatus(
        name=name,
        state=state,
        message=f"replaced by {view.wanted.name}" if state != "Live" and name != view.wanted.name else "",
        verdict=before.verdict,
        analysis=before.analysis,
        models=before.models,
    )
    return with_entry(revisions, entry, view.snapshot.now)


def _obeyed(view: RolloutContext, state: State, action: Action) -> dict[str, ObeyedDecision]:
    """The decision to record as obeyed. The wanted revision has this state after the pass.

    A decision that has no effect, such as one about a revision that is Live, is recorded too, so that it
    has none later. `Continue` has an effect only on the step that the revision waits in now.
    """
    decision = view.decision
    is_obeyed = state in {"Baking", "Live", *REJECTED_STATES} or (view.is_retried and state != "Pending")
    if view.verdict == "Continue":
        is_obeyed |= action is Action.STEP or not view.awaits_continue
    if decision is None or not is_obeyed:
        return {}
    now = view.snapshot.now.replace(microsecond=0)
    return {"decision": ObeyedDecision(**decision.model_dump(), at=now)}
