# SPDX-License-Identifier: Apache-2.0
"""Plan one pass over an endpoint: start the wanted revision, route requests to it, delete older ones."""

from dataclasses import replace

from finetune_operator.api.inference_deployment import InferenceDeployment, RevisionStatus
from finetune_operator.engine.resources import DEPLOYMENT
from finetune_operator.manifests.revision import Revision
from finetune_operator.plan import Delete, Plan
from finetune_operator.reconcile.features.merging import merge_weights, with_served_merge
from finetune_operator.reconcile.features.model_cache import fill_cache
from finetune_operator.reconcile.inferencedeployment.endpoint import ObservedEndpoint
from finetune_operator.reconcile.inferencedeployment.revision.base_model import places_of, targets_of
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import (
    UNVERIFIED_STATES,
    with_entry,
)
from finetune_operator.reconcile.inferencedeployment.revision.targets import resolve, wanted_revision
from finetune_operator.reconcile.inferencedeployment.rollout.rollout import may_start, roll_out
from finetune_operator.reconcile.inferencedeployment.rollout.rollout_context import RolloutContext
from finetune_operator.reconcile.inferencedeployment.traffic import route_needs
from finetune_operator.reconcile.inputs.related_types import Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, PassOutcome, PlanBuilder, Working
from finetune_operator.reconcile.platform.profiles import label_needs, named_profile
from finetune_operator.reconcile.platform.queues import queue_needs, serving_queue
from finetune_operator.reconcile.platform.storage import claims_of

__all__ = ["needs", "reconcile"]


def needs(endpoint: InferenceDeployment, snapshot: Snapshot) -> Needs:
    """The claims that have or get the weights to serve, that of the model cache, the queue, and the route.

    Also the namespace, if its labels decide about the profile.
    """
    name = endpoint.spec.compute.profile
    profile = named_profile(name, "spec.compute.profile", endpoint.namespace, snapshot)
    places = () if isinstance(profile, Blocked) else places_of(endpoint, profile)
    cache = None if isinstance(profile, Blocked) else profile.spec.serving.model_cache
    queue = {} if isinstance(profile, Blocked) else serving_queue(profile, endpoint.spec.compute)
    claims = claims_of(
        *places,
        *(weights.uri for _, weights in resolve(endpoint, snapshot.checkpoints).resolved),
        f"pvc://{cache.claim}" if cache is not None and cache.claim is not None else None,
    )
    labels = label_needs((name,), endpoint.namespace, snapshot)
    return {**claims, **labels, **queue_needs(queue), **route_needs(endpoint, snapshot)}


def reconcile(endpoint: InferenceDeployment, snapshot: Snapshot) -> Plan:
    """Plan one pass over an endpoint."""
    if endpoint.metadata.deletion_timestamp is not None:
        return Plan()
    draft = PlanBuilder(snapshot)
    targets = targets_of(draft, endpoint)
    wanted = wanted_revision(endpoint, targets, snapshot)
    if not isinstance(wanted, Revision):
        return _with_draft(_keep(ObservedEndpoint(endpoint, snapshot), wanted), draft)
    view = RolloutContext(endpoint, snapshot, targets, wanted)
    prepared = _prepare(draft, view)
    waits = prepared.requeue_after if not isinstance(prepared, Revision) else None
    if isinstance(prepared, Revision):
        plan = roll_out(replace(view, wanted=prepared))
    elif view.deployment is not None:
        plan = roll_out(view)
    else:
        plan = _keep(view.observed, prepared)
    return _with_draft(plan, draft, waits)


def _with_draft(plan: Plan, draft: PlanBuilder, waits: float | None = None) -> Plan:
    """The plan with the writes that prepare a revision; `waits`: seconds until they need another pass."""
    return replace(
        plan,
        create=(*draft.create, *plan.create),
        delete=(*draft.delete, *plan.delete),
        events=(*draft.events, *plan.events),
        requeue_after=min((each for each in (waits, plan.requeue_after) if each), default=None),
    )


def _prepare(draft: PlanBuilder, view: RolloutContext) -> Revision | Working | Blocked:
    """Make what pods of the wanted revision will read: merged weights, and the model in the model cache.

    The revision is returned as it is while no pod of it may start.
    """
    wanted, deployment = view.wanted, view.deployment
    if not (may_start(view) if deployment is None else view.endpoint.spec.replicas):
        return wanted
    if wanted.merged is None or deployment is None:
        merged = merge_weights(draft, view.endpoint, wanted)
    else:
        # The merge Job may be gone. The digests are in the template of the pods.
        merged = with_served_merge(wanted, deployment)
    if not isinstance(merged, Revision):
        return merged
    return fill_cache(draft, view.endpoint, merged) or merged


def _keep(observed: ObservedEndpoint, halt: PassOutcome) -> Plan:
    """Keep the revisions that serve while no revision can be rolled out.

    A revision that was starting is deleted: it could not get requests, and others wait for its room and slot.
    """
    weights = observed.traffic.weights()
    restored, events = observed.corrections(*weights)
    deployments = observed.snapshot.children[DEPLOYMENT]
    revisions = observed.endpoint.status.revisions
    starting = [each for each in revisions if each.state in UNVERIFIED_STATES and each.name not in weights]
    for each in starting:
        entry = RevisionStatus(name=each.name, state="Retired", models=each.models)
        revisions = with_entry(revisions, entry, observed.snapshot.now)
    # Between steps of a canary each revision keeps its replicas.
    replicas = dict.fromkeys(weights, observed.endpoint.spec.replicas) if len(weights) == 1 else {}
    scaled = observed.replica_applies(replicas)
    return observed.plan(
        halt,
        apply=(*scaled, *restored),
        delete=tuple(
            Delete(deployments[each.name], "Background") for each in starting if each.name in deployments
        ),
        events=events,
        revisions=revisions,
    )
