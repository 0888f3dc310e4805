"""Endpoints, checkpoints and their prerequisites for the serving tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.engine.resources import DEPLOYMENT, NETWORK_POLICY, POD, POD_DISRUPTION_BUDGET, SERVICE
from finetune_operator.plan import Manifest, Plan
from finetune_operator.reconcile.inferencedeployment.reconciler import reconcile
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, Snapshot
from finetune_operator.reconcile.lines.checkpointindex import CheckpointIndex

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
FACTS = OperatorFacts(
    namespace="finetune-system",
    trainer_image="registry.example/trainer:1",
    monitoring_namespace={"kubernetes.io/metadata.name": "monitoring"},
)
BASE = "sha256:" + "b" * 64


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
        "perDeviceBatchSize": 1,
        "gradientAccumulationSteps": 1,
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
                "model": "tickets",
                "digest": digest(character),
                "type": "Adapter",
                "step": 10,
                "epoch": 1,
                "uri": f"pvc://artifacts/checkpoints/{character * 64}",
                "lineage": {
                    "baseModel": {"uri": "pvc://models/base", "digest": BASE},
                    "datasetVersion": "rows-1",
                    "job": {"name": "run", "uid": f"run-of-{name}"},
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
                "models": [{"name": "router", "follow": {"model": "tickets"}}],
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


class EndpointCluster:
    """A minimal API server for passes over one endpoint."""

    def __init__(self, *checkpoints: Checkpoint, **spec: Any) -> None:
        self.endpoint = endpoint(**spec)
        self.checkpoints = CheckpointIndex(checkpoints)
        self.others: tuple[InferenceDeployment, ...] = ()
        self.profiles = {"standard": profile()}
        self.deployments: dict[str, Manifest] = {}
        self.services: dict[str, Manifest] = {}
        self.network_policies: dict[str, Manifest] = {}
        self.disruption_budgets: dict[str, Manifest] = {}
        self.pods: dict[str, Manifest] = {}
        self.log: list[str] = []

    def reconcile(self) -> Plan:
        """Carry out one pass."""
        snapshot = Snapshot(
            now=NOW,
            facts=FACTS,
            children={
                DEPLOYMENT: dict(self.deployments),
                SERVICE: dict(self.services),
                NETWORK_POLICY: dict(self.network_policies),
                POD_DISRUPTION_BUDGET: dict(self.disruption_budgets),
                POD: dict(self.pods),
            },
            checkpoints=self.checkpoints,
            profiles=self.profiles,
            service_accounts=frozenset({"finetune-runner"}),
            rolling_everywhere=(self.endpoint, *self.others),
        )
        plan = reconcile(self.endpoint, snapshot)
        for create in plan.create:
            self._put(create.manifest, "create")
        for apply in plan.apply:
            self._merge(apply.manifest)
        for delete in plan.delete:
            self.log.append(f"delete {delete.manifest['metadata']['name']}")
            del self._store(delete.manifest)[delete.manifest["metadata"]["name"]]
        self.log.extend(f"event {event.reason}" for event in plan.events)
        if plan.status is not None:
            self.endpoint = InferenceDeployment.model_validate(
                {**self.endpoint.to_dict(), "status": plan.status}
            )
        return plan

    def settle(self) -> None:
        """Carry out passes until nothing changes."""
        for _ in range(10):
            before = self._state()
            self.reconcile()
            if before == self._state():
                return
        raise AssertionError(f"does not settle: {self.log}")

    def _state(self) -> tuple[InferenceDeployment, list[dict[str, Manifest]]]:
        children = (self.deployments, self.services, self.network_policies, self.disruption_budgets)
        return self.endpoint, [dict(each) for each in children]

    def edit(self, **spec: Any) -> None:
        """Edit the spec as `kubectl apply` does."""
        raw = self.endpoint.to_dict()
        raw["spec"].update(spec)
        raw["metadata"]["generation"] += 1
        self.endpoint = InferenceDeployment.model_validate(raw)

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
        condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
        self.deployments[name] = {**self.deployments[name], "status": {"conditions": [condition]}}

    @property
    def points_at(self) -> str:
        """The revision that the Service selects."""
        revision: str = self.services["desk"]["spec"]["selector"]["finetune.dev/revision"]
        return revision

    def condition(self, type_: str) -> tuple[str, str] | None:
        """Reason and message of a condition that is True."""
        for condition in self.endpoint.status.conditions:
            if condition.type == type_ and condition.status == "True":
                return condition.reason, condition.message
        return None

    def _store(self, manifest: Manifest) -> dict[str, Manifest]:
        return {
            "Deployment": self.deployments,
            "Service": self.services,
            "NetworkPolicy": self.network_policies,
            "PodDisruptionBudget": self.disruption_budgets,
        }[manifest["kind"]]

    def _put(self, manifest: Manifest, verb: str) -> None:
        name, store = manifest["metadata"]["name"], self._store(manifest)
        if name not in store:
            self.log.append(f"{verb} {manifest['kind']} {name}")
            metadata = {**manifest["metadata"], "uid": f"uid-of-{name}", "generation": 1}
            store[name] = {**manifest, "metadata": metadata}

    def _merge(self, manifest: Manifest) -> None:
        """Apply as the executor does: create a missing object, and write nothing if nothing changes."""
        name, store = manifest["metadata"]["name"], self._store(manifest)
        if name not in store:
            self._put(manifest, "apply")
            return
        assert (
            manifest["metadata"].get("uid", store[name]["metadata"]["uid"]) == store[name]["metadata"]["uid"]
        )
        before = store[name]
        merged = {**before, "spec": {**before["spec"], **manifest["spec"]}}
        annotations = manifest["metadata"].get("annotations", {})
        if annotations:
            kept = before["metadata"].get("annotations", {})
            merged["metadata"] = {**before["metadata"], "annotations": {**kept, **annotations}}
        if merged != before:
            self.log.append(f"apply {manifest['kind']} {name}")
            store[name] = merged


def serving(**spec: Any) -> tuple[EndpointCluster, str]:
    """An endpoint that serves, and its revision."""
    cluster = EndpointCluster(checkpoint("first", "1"), **spec)
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    return cluster, revision
