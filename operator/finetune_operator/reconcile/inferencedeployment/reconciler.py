"""Plan one pass over an endpoint: start the wanted revision, route requests to it, delete older ones."""

from finetune_operator.api.endpointstatus import RevisionStatus
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.engine.resources import DEPLOYMENT
from finetune_operator.manifests.revision import Revision
from finetune_operator.plan import Delete, Plan
from finetune_operator.reconcile.inferencedeployment.endpoint import ObservedEndpoint
from finetune_operator.reconcile.inferencedeployment.revisions import find_revision, with_entry
from finetune_operator.reconcile.inferencedeployment.rollout import roll_out
from finetune_operator.reconcile.inferencedeployment.targets import resolve
from finetune_operator.reconcile.inferencedeployment.view import EndpointView
from finetune_operator.reconcile.inferencedeployment.wanted import wanted_revision
from finetune_operator.reconcile.inputs.secondaries import Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.platform.storage import claims_of
from finetune_operator.reconcile.steps import Halt

__all__ = ["needs", "reconcile"]


def needs(endpoint: InferenceDeployment, snapshot: Snapshot) -> Needs:
    """The claims that have the weights to serve."""
    return claims_of(*(weights.uri for _, weights in resolve(endpoint, snapshot.checkpoints).resolved))


def reconcile(endpoint: InferenceDeployment, snapshot: Snapshot) -> Plan:
    """Plan one pass over an endpoint."""
    if endpoint.metadata.deletion_timestamp is not None:
        return Plan()
    targets = resolve(endpoint, snapshot.checkpoints)
    wanted = wanted_revision(endpoint, targets, snapshot)
    if isinstance(wanted, Revision):
        return roll_out(EndpointView(endpoint, snapshot, targets, wanted))
    return _keep(ObservedEndpoint(endpoint, snapshot), wanted)


def _keep(observed: ObservedEndpoint, halt: Halt) -> Plan:
    """Keep the revisions that serve while no revision can be rolled out.

    A revision for which the serving one was stopped is deleted, because the serving one needs its room.
    """
    weights = observed.traffic.weights()
    restored, events = observed.corrections(*weights)
    deployments = observed.snapshot.children[DEPLOYMENT]
    stopped = [name for name in weights if deployments.get(name, {}).get("spec", {}).get("replicas") == 0]
    removed = [name for name in deployments if name not in weights]
    if not stopped or observed.endpoint.spec.replicas == 0:
        removed = []
    revisions = observed.endpoint.status.revisions
    for name in removed:
        before = find_revision(revisions, name) or RevisionStatus(name=name, state="Retired")
        entry = RevisionStatus(name=name, state="Retired", verdict=before.verdict, models=before.models)
        revisions = with_entry(revisions, entry, observed.snapshot.now)
    # Between steps of a canary each revision keeps its replicas.
    replicas = dict.fromkeys(weights, observed.endpoint.spec.replicas) if len(weights) == 1 else {}
    scaled = observed.replica_applies(replicas)
    return observed.plan(
        halt,
        apply=(*scaled, *restored),
        delete=tuple(Delete(deployments[name], "Background") for name in removed),
        events=events,
        revisions=revisions,
    )
