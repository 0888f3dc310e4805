# SPDX-License-Identifier: Apache-2.0
"""Manifests of users and of the platform team for the integration tests."""

from typing import Any

from finetune_operator.manifests.labels import INSTALLATION, INSTALLATION_LEASE, WATCHED
from tests.integration.api import Api, Object

API_VERSION = "finetune.dev/v1alpha1"
GATES = [{"metric": "exact_match", "min": 0.8}, {"metric": "exact_match", "minGain": 0.3, "over": "Base"}]
HYPERPARAMETERS = {
    "epochs": 1,
    "learningRate": 0.001,
    "batchSize": 1,
    "warmupRatio": 0.05,
    "scheduler": "Linear",
    "weightDecay": 0,
    "maxSequenceLength": 64,
    "seed": 0,
    "totalSteps": 1,
    "saveEverySteps": 1,
}
"""Hyperparameters in the lineage of a Checkpoint."""


def of(kind: str, namespace: str, name: str, spec: Object) -> Object:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def profile(name: str) -> Object:
    """A profile on CPU; a device is a core."""
    return of("ComputeProfile", "", name, {"accelerator": {"resource": "cpu", "maxPerPod": 4}})


def installation(namespace: str, lease: str, *watched: str) -> Object:
    """The ClusterRoleBinding by which the chart marks an installation; it grants nothing."""
    annotations = {INSTALLATION_LEASE: f"{namespace}/{lease}", WATCHED: ",".join(watched) or "*"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {
            "name": f"{namespace}-{lease}",
            "labels": {INSTALLATION: "true"},
            "annotations": annotations,
        },
        "roleRef": role,
    }


def claim(namespace: str, name: str) -> Object:
    spec = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def dataset(namespace: str, name: str = "tickets") -> Object:
    source = {"uri": f"configmap://{name}/rows.jsonl"}
    return of("Dataset", namespace, name, {"sources": [source], "store": {"uri": "pvc://artifacts"}})


def finetunejob(namespace: str, name: str = "routing", **spec: Any) -> Object:
    """A run that trains, is evaluated and promoted."""
    return of(
        "FineTuneJob",
        namespace,
        name,
        {
            "modelLine": "ticket-routing",
            "baseModel": {"uri": "pvc://models/tiny"},
            "dataset": {"ref": {"name": "tickets"}},
            "compute": {"profile": profile_name(namespace)},
            "store": {"uri": "pvc://artifacts"},
            "evaluation": {"gates": GATES},
            **spec,
        },
    )


def evaluation(namespace: str, name: str, *checkpoints: str, **spec: Any) -> Object:
    """An Evaluation of these Checkpoints on the Dataset `questions`."""
    fields: Object = {
        "checkpoints": list(checkpoints),
        "dataset": {"ref": {"name": "questions"}},
        "gates": [{"metric": "exact_match", "min": 0.8}],
        "profile": profile_name(namespace),
    }
    return of("Evaluation", namespace, name, fields | spec)


def finetunesweep(namespace: str, run: Object, name: str = "rates", **spec: Any) -> Object:
    """A sweep over two ranks with this spec of a run."""
    parameters = [{"field": "method.lora.r", "values": [8, 16]}]
    fields: Object = {"parameters": parameters, "search": "Grid", "template": {"spec": run}}
    return of("FineTuneSweep", namespace, name, fields | spec)


def finetuneschedule(namespace: str, run: Object, name: str = "nightly", **spec: Any) -> Object:
    """A schedule of each night with this spec of a run."""
    triggers = {"cron": {"schedule": "0 3 * * *", "timeZone": "Europe/Berlin"}}
    return of("FineTuneSchedule", namespace, name, {"triggers": triggers, "template": {"spec": run}} | spec)


def inferencedeployment(namespace: str, name: str = "support") -> Object:
    return of(
        "InferenceDeployment",
        namespace,
        name,
        {
            "baseModel": {"uri": "pvc://models/tiny"},
            "models": [{"name": "routing", "follow": {"modelLine": "ticket-routing"}}],
            "compute": {"profile": profile_name(namespace)},
        },
    )


def profile_name(namespace: str) -> str:
    """Name of the test's ComputeProfile, which is cluster-scoped."""
    return f"cpu-{namespace}"


def prepare_namespace(api: Api, namespace: str) -> None:
    """Create the prerequisites of runs: a ComputeProfile and two claims."""
    api.create(profile(profile_name(namespace)))
    for name in ("artifacts", "models"):
        api.create(claim(namespace, name))


def condition(obj: Object | None, type_: str) -> Object:
    """The condition; empty if it does not exist."""
    conditions = ((obj or {}).get("status") or {}).get("conditions", [])
    found: Object = next((each for each in conditions if each["type"] == type_), {})
    return found


def is_true(obj: Object | None, type_: str) -> bool:
    return condition(obj, type_).get("status") == "True"
