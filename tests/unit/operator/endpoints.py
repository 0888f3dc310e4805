# SPDX-License-Identifier: Apache-2.0
"""Endpoints, checkpoints and their prerequisites for the serving tests."""

from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import PROFILE, REVISION, RUN
from finetune_operator.api.meta import Resource
from finetune_operator.plan import Manifest, Plan
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, Snapshot
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import claim

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
FACTS = OperatorFacts(
    namespace="finetune-system",
    trainer_image="registry.example/trainer:1",
    nonce_key="0f" * 32,
    monitoring_namespace={"kubernetes.io/metadata.name": "monitoring"},
)
BASE = "sha256:" + "b" * 64
PREREQUISITES = (
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "finetune-runner"}},
    *(claim(name, "ReadWriteMany") for name in ("artifacts", "golden", "models", "moved")),
)
"""Objects that an endpoint needs in its namespace."""


def digest(character: str) -> str:
    return "sha256:" + character * 64


def checkpoint(name: str, character: str, *, promoted: int | None = 0, **spec: Any) -> Checkpoint:
    """A Checkpoint of line `tickets`, promoted this many seconds after NOW."""
    status: Manifest = {}
    if promoted is not None:
        status["promotedAt"] = (NOW + timedelta(seconds=promoted)).isoformat()
    hyperparameters = {
        "epochs": 1,
        "learningRate": 0.001,
        "batchSize": 1,
        "warmupRatio": 0.05,
        "scheduler": "Linear",
        "weightDecay": 0,
        "maxSequenceLength": 64,
        "seed": 0,
        "totalSteps": 10,
        "saveEverySteps": 10,
    }
    return Checkpoint.model_validate(
        {
            "kind": "Checkpoint",
            "metadata": {"name": name, "namespace": "team"},
            "spec": {
                "modelLine": "tickets",
                "digest": digest(character),
                "type": "Adapter",
                "step": 10,
                "epoch": 1,
                "uri": f"pvc://artifacts/checkpoints/{character * 64}",
                "lineage": {
                    "baseModel": {"uri": "pvc://models/base", "digest": BASE},
                    "datasetVersion": "rows-1",
                    "job": {"name": "run", "uid": f"run-of-{name}"},
                    "method": {"objective": "SFT", "type": "LoRA"},
                    "adapter": {"r": 16},
                    "hyperparameters": hyperparameters,
                    "trainerImage": "registry.example/trainer:1",
                },
                **spec,
            },
            "status": status,
        }
    )


def endpoint(status: Manifest | None = None, generation: int = 1, **spec: Any) -> InferenceDeployment:
    return InferenceDeployment.model_validate(
        {
            "kind": "InferenceDeployment",
            "metadata": {
                "name": "desk",
                "namespace": "team",
                "uid": "endpoint-uid",
                "generation": generation,
            },
            "spec": {
                "baseModel": {"uri": "pvc://models/base"},
                "models": [{"name": "router", "follow": {"modelLine": "tickets"}}],
                **spec,
            },
            "status": status or {},
        }
    )


def profile(**spec: Any) -> ComputeProfile:
    return ComputeProfile.model_validate(
        {
            "kind": "ComputeProfile",
            "metadata": {"name": "standard", "annotations": {"finetune.dev/is-default-profile": "true"}},
            "spec": {"store": {"uri": "pvc://artifacts"}, **spec},
        }
    )


class Objects(MutableMapping[str, Manifest]):
    """The objects of one kind in a cluster, by name."""

    def __init__(self, cluster: MemoryCluster, kind: str) -> None:
        self._cluster = cluster
        self._kind = kind

    def __getitem__(self, name: str) -> Manifest:
        return self._cluster.objects[self._kind, name]

    def __setitem__(self, name: str, manifest: Manifest) -> None:
        self._cluster.objects[self._kind, name] = manifest

    def __delitem__(self, name: str) -> None:
        del self._cluster.objects[self._kind, name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cluster.of(self._kind))

    def __len__(self) -> int:
        return len(self._cluster.of(self._kind))


class EndpointCluster:
    """A cluster with one endpoint, Checkpoints and a default ComputeProfile.

    Args:
        checkpoints: the Checkpoints.
        cluster: an empty cluster to put them in.
        name: name of the endpoint.
        spec: fields of its spec.
    """

    def __init__(
        self, *checkpoints: Checkpoint, cluster: MemoryCluster | None = None, name: str = "desk", **spec: Any
    ) -> None:
        self.cluster = cluster or MemoryCluster(facts=FACTS)
        self.cluster.now = NOW
        self.name = name
        served = endpoint(**spec).to_dict()
        served["metadata"]["name"] = name
        self.put(*(dict(each) for each in PREREQUISITES), served, profile(), *checkpoints)
        self.deployments = Objects(self.cluster, "Deployment")
        self.services = Objects(self.cluster, "Service")
        self.network_policies = Objects(self.cluster, "NetworkPolicy")
        self.disruption_budgets = Objects(self.cluster, "PodDisruptionBudget")
        self.pods = Objects(self.cluster, "Pod")
        self.routes = Objects(self.cluster, "HTTPRoute")

    def put(self, *objects: Resource | Manifest) -> None:
        """Create or replace objects."""
        for obj in objects:
            manifest = obj if isinstance(obj, dict) else obj.to_dict()
            existing = self.cluster.objects.get((manifest["kind"], manifest["metadata"]["name"]))
            if existing is not None:
                manifest["metadata"].setdefault("uid", existing["metadata"]["uid"])
            self.cluster.add(manifest)

    def put_child(self, manifest: Manifest) -> None:
        """Create an object that the endpoint controls."""
        owner = {
            "kind": "InferenceDeployment",
            "name": self.name,
            "uid": self.endpoint.uid,
            "controller": True,
        }
        self.put({**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}})

    def configure(self, **facts: Any) -> None:
        """Change facts of the operator process."""
        self.cluster.facts = replace(self.cluster.facts, **facts)

    @property
    def endpoint(self) -> InferenceDeployment:
        return InferenceDeployment.model_validate(self.cluster.objects["InferenceDeployment", self.name])

    @endpoint.setter
    def endpoint(self, endpoint: InferenceDeployment) -> None:
        self.cluster.objects["InferenceDeployment", self.name] = endpoint.to_dict()

    @property
    def log(self) -> list[str]:
        """Changes and events of the passes."""
        return self.cluster.log

    def snapshot(self) -> Snapshot:
        """The snapshot of a pass over the endpoint."""
        return self.cluster.snapshot("InferenceDeployment", self.name)[1]

    def reconcile(self) -> Plan:
        """Carry out one pass."""
        return self.cluster.reconcile("InferenceDeployment", self.name)

    def settle(self) -> None:
        """Carry out passes until nothing changes any more."""
        for _ in range(10):
            before = self.cluster.writes
            self.reconcile()
            if before == self.cluster.writes:
                return
        raise AssertionError(f"does not settle: {self.log}")

    def edit(self, **spec: Any) -> None:
        """Edit the spec as `kubectl apply` does."""
        raw = self.endpoint.to_dict()
        raw["spec"].update(spec)
        raw["metadata"]["generation"] += 1
        self.endpoint = InferenceDeployment.model_validate(raw)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.cluster.now += timedelta(seconds=seconds)

    def scale(self, name: str, replicas: int) -> None:
        """Set the replicas of a Deployment."""
        deployment = self.deployments[name]
        self.deployments[name] = {**deployment, "spec": {**deployment["spec"], "replicas": replicas}}

    def make_ready(self, name: str) -> None:
        """Make the pods ready, as the kubelet and deployment controller do."""
        deployment = self.deployments[name]
        replicas = deployment["spec"]["replicas"]
        self.deployments[name] = {
            **deployment,
            "status": {
                "observedGeneration": 1,
                "replicas": replicas,
                "readyReplicas": replicas,
                "updatedReplicas": replicas,
            },
        }

    def miss_deadline(self, name: str) -> None:
        """Let the rollout exceed its deadline, as the deployment controller reports it."""
        self.wait(self.deployments[name]["spec"]["progressDeadlineSeconds"])
        condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
        self.deployments[name] = {**self.deployments[name], "status": {"conditions": [condition]}}

    @property
    def points_at(self) -> str:
        """The revision that the Service selects."""
        revision: str = self.services[self.name]["spec"]["selector"]["finetune.dev/revision"]
        return revision

    def condition(self, type_: str) -> tuple[str, str] | None:
        """Reason and message of a condition that is True."""
        for condition in self.endpoint.status.conditions:
            if condition.type == type_ and condition.status == "True":
                return condition.reason, condition.message
        return None


def serving(**spec: Any) -> tuple[EndpointCluster, str]:
    """An endpoint that serves, and its revision."""
    cluster = EndpointCluster(checkpoint("first", "1"), **spec)
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    return cluster, revision


def rolling(**spec: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint that rolls out a second Checkpoint; the old revision and the new one."""
    cluster, old = serving(**spec)
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    return cluster, old, new


def states(cluster: EndpointCluster) -> dict[str, str]:
    """The recorded state of each revision."""
    return {revision.name: revision.state for revision in cluster.endpoint.status.revisions}


def serving_pod(revision: str, name: str = "", **status: Any) -> Manifest:
    """A pod of this revision."""
    owner = {"kind": "ReplicaSet", "name": f"{revision}-5d4f8", "uid": "replicaset-uid", "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name or f"{revision}-pod",
            "labels": {RUN: "endpoint-uid", REVISION: revision, PROFILE: "standard"},
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": "node-1"},
        "status": status,
    }


def unscheduled_pod(
    revision: str, message: str = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
) -> Manifest:
    """A pod of this revision that the scheduler found no node for."""
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return serving_pod(revision, conditions=[scheduled])


def broken_pod(revision: str) -> Manifest:
    """A pod of this revision whose failure a retry cannot fix."""
    ended = {"terminated": {"exitCode": 10, "message": "ArtifactCorrupt: another digest"}}
    waiting = {"name": "fetch", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended}
    return serving_pod(revision, f"{revision}-broken", initContainerStatuses=[waiting])


def crashed_pod(revision: str, finished: str | None = None) -> Manifest:
    """A pod of this revision whose engine has crashed and runs again."""
    ended: Manifest = {"exitCode": 137, "reason": "OOMKilled"}
    if finished is not None:
        ended["finishedAt"] = finished
    engine = {"name": "engine", "state": {"running": {}}, "lastState": {"terminated": ended}}
    return serving_pod(revision, containerStatuses=[engine])
