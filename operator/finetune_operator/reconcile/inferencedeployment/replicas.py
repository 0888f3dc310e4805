"""Replicas of each revision of an endpoint."""

from finetune_operator.reconcile.inferencedeployment.transitions import State
from finetune_operator.reconcile.inferencedeployment.view import EndpointView


def replicas_of(view: EndpointView, state: State) -> dict[str, int]:
    """Replicas of the wanted revision, which has this state after the pass, and of those that get requests.

    A revision that is recreated gets the room of the others. They keep their Deployments, with 0 replicas, to
    start again if it fails.
    """
    replicas = dict.fromkeys((*view.weights, view.wanted.name), view.endpoint.spec.replicas)
    if state == "RollingOut" and view.is_recreating:
        replicas |= dict.fromkeys(view.others, 0)
    return replicas
