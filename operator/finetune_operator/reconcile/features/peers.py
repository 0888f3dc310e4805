# SPDX-License-Identifier: Apache-2.0
"""Several pods of a stage: objects by which the pods of a run find each other and refuse other connections.

A headless Service gives each pod a name. A Secret has the key that each pod must prove to have. A
NetworkPolicy refuses connections of other pods, if the cluster enforces such policies.
"""

from base64 import b64encode
from collections.abc import Mapping
from typing import Final

from finetune_operator.api.labels import RUN, STAGE
from finetune_operator.api.meta import Resource
from finetune_operator.manifests.jobs import child_metadata
from finetune_operator.manifests.labels import stage_job_name, stage_object_name
from finetune_operator.manifests.network_policies import (
    allow,
    build_network_policy,
    namespaces_with,
    pods_with,
)
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages.stage_request import PeerObjects
from finetune_operator.stage_table import JobStage
from finetune_trainer.contract.environment import METRICS_PORT, PEER_KEY_FILE, RENDEZVOUS_PORT

KEY_BYTES: Final = 32


def coordinator_host(owner: Resource, stage: JobStage) -> str:
    """Host name of the pod with index 0. The other pods resolve it in their own namespace first."""
    return f"{stage_job_name(owner, stage)}-0.{stage_object_name(owner, stage)}"


def build_peer_service(owner: Resource, stage: JobStage) -> Manifest:
    """The headless Service. It includes pods that are not ready, because none is ready before all are.

    It never changes, so it is created and never applied. It outlives the train Jobs of a run that is
    suspended and resumed.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(owner, stage_object_name(owner, stage)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": _labels(owner, stage),
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }


def build_peer_key(owner: Resource, stage: JobStage, entropy: bytes) -> Manifest:
    """The Secret. Pods mount it as a file, not a variable, so that no description of a pod shows it.

    Raises:
        ValueError: `entropy` does not have the 32 bytes of a key.
    """
    if len(entropy) != KEY_BYTES:
        raise ValueError(f"a key needs {KEY_BYTES} random bytes, not {len(entropy)}")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": child_metadata(owner, stage_object_name(owner, stage)),
        "type": "Opaque",
        "immutable": True,
        "data": {PEER_KEY_FILE: b64encode(entropy).decode()},
    }


def build_peer_policy(owner: Resource, stage: JobStage, monitoring: Mapping[str, str]) -> Manifest:
    """The NetworkPolicy. The run's pods may connect to each other at all ports: gloo and NCCL choose theirs.

    Args:
        owner: the run.
        monitoring: labels of the namespaces that may read the pods' metrics.
    """
    return build_network_policy(
        owner,
        stage_object_name(owner, stage),
        _labels(owner, stage),
        [allow([pods_with(_labels(owner, stage))]), allow([namespaces_with(monitoring)], METRICS_PORT)],
    )


def _labels(owner: Resource, stage: JobStage) -> dict[str, str]:
    return {RUN: owner.uid, STAGE: stage}


def build_peer_objects(owner: Resource, stage: JobStage, snapshot: Snapshot) -> PeerObjects:
    """All three objects."""
    return PeerObjects(
        service=build_peer_service(owner, stage),
        policy=build_peer_policy(owner, stage, snapshot.facts.monitoring_namespace),
        key=build_peer_key(owner, stage, snapshot.entropy),
    )
