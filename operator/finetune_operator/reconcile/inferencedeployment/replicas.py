"""Replicas of each revision of an endpoint."""

from finetune_operator.reconcile.inferencedeployment.transitions import UNPROVEN, State
from finetune_operator.reconcile.inferencedeployment.view import EndpointView


def replicas_of(view: EndpointView, state: State, step: int | None = None) -> dict[str, int]:
    """Replicas of the wanted revision, which has this state after the pass, and of those that get requests.

    A revision that is recreated gets the room of the others. They keep their Deployments, with 0 replicas, to
    start again if it fails. A canary takes over replicas of the stable revision one by one as they become
    ready, so the endpoint always has `spec.replicas` ready ones.
    """
    replicas = dict.fromkeys((*view.weights, view.wanted.name), view.endpoint.spec.replicas)
    if state == "RollingOut" and view.is_recreating:
        replicas |= dict.fromkeys(view.others, 0)
    canary = view.canary
    if canary is not None and state in UNPROVEN and view.verdict != "Promote":
        replicas[view.wanted.name] = canary.replicas_at(0)
    if canary is not None and state == "Canary":
        at = view.step if step is None else step
        status = (view.deployment or {}).get("status", {})
        replicas[view.wanted.name] = canary.replicas_at(at)
        replicas[view.stable] = canary.replicas - min(canary.shared_at(at), status.get("readyReplicas", 0))
    return replicas
