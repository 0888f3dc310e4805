"""What lets the pods of one run find each other: a headless Service that gives each of them a name."""

from typing import Final

from finetune_operator.api.meta import Resource
from finetune_operator.build.jobs import owner_reference
from finetune_operator.build.labels import RUN, STAGE, child_labels, short_hash, stage_job_name
from finetune_operator.plan import Manifest
from finetune_trainer.contract import RENDEZVOUS_PORT

TRAIN: Final = "train"


def peer_service_name(owner: Resource) -> str:
    """`train-<owner>-<5 hex>`: a Service's name begins with a letter, a run's may begin with a digit."""
    return f"{TRAIN}-{owner.name}-{short_hash(owner.uid, TRAIN)}"


def coordinator_host(owner: Resource) -> str:
    """The name of pod index 0 for the run's other pods, who look it up in their own namespace first."""
    return f"{stage_job_name(owner, TRAIN)}-0.{peer_service_name(owner)}"


def build_peer_service(owner: Resource) -> Manifest:
    """The Service. It has no address of its own, and names pods that are not ready: none is before all are.

    It never changes, so it is created and never applied, and it outlives the train Jobs of a run that is
    suspended and resumed.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": peer_service_name(owner),
            "namespace": owner.namespace,
            "labels": child_labels(owner),
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {RUN: owner.uid, STAGE: TRAIN},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }
