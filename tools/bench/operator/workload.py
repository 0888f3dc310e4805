# SPDX-License-Identifier: Apache-2.0
"""Manifests of the benchmark: a team's runs on one Dataset, each with its own model line."""

from typing import Any, Final

from finetune_operator.api.compute_profile import DEFAULT_PROFILE_LABEL
from finetune_operator.api.meta import API_VERSION

Object = dict[str, Any]

NAMESPACE: Final = "team"
PROFILE: Final = "cpu"
LAST_STAGE: Final = "evaluate"
"""Last stage of the runs below."""


def namespace(name: str = NAMESPACE) -> Object:
    """The namespace of a team."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def prerequisites() -> list[Object]:
    """Objects that the platform team and the team create before the first run."""
    return [
        ours("ComputeProfile", "", PROFILE, {"accelerator": {"resource": "cpu", "maxPerPod": 4}}),
        *team_prerequisites(),
    ]


def team_prerequisites(name: str = NAMESPACE) -> list[Object]:
    """Objects that a team creates before its first run."""
    return [namespace(name), *claims(name), dataset("tickets", name)]


def claims(team: str) -> list[Object]:
    """The volumes with a team's base models and its store."""
    claim = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": each, "namespace": team},
            "spec": claim,
        }
        for each in ("artifacts", "models")
    ]


def dataset(name: str, team: str) -> Object:
    """A Dataset whose rows are in a ConfigMap."""
    source = {"uri": "configmap://tickets/rows.jsonl"}
    return ours("Dataset", team, name, {"sources": [source], "store": {"uri": "pvc://artifacts"}})


def profile(**spec: Any) -> Object:
    """The cluster's default ComputeProfile."""
    made = ours("ComputeProfile", "", PROFILE, {"accelerator": {"resource": "cpu", "maxPerPod": 4}, **spec})
    made["metadata"]["annotations"] = {DEFAULT_PROFILE_LABEL: "true"}
    return made


def finetunejob(number: int, team: str = NAMESPACE, **spec: Any) -> Object:
    """A run that is preflighted, trained, evaluated and promoted, unless fields of `spec` prevent it."""
    gates = [{"metric": "exact_match", "min": 0.8}, {"metric": "exact_match", "minGain": 0.3, "over": "Base"}]
    return ours(
        "FineTuneJob",
        team,
        f"run-{number:05d}",
        {
            "modelLine": f"line-{number:05d}",
            "baseModel": {"uri": "pvc://models/tiny"},
            "dataset": {"ref": {"name": "tickets"}},
            "compute": {"profile": PROFILE},
            "store": {"uri": "pvc://artifacts"},
            "evaluation": {"gates": gates},
            **spec,
        },
    )


def bare_job(number: int) -> Object:
    """A Job of a user, with a name like that of a run's first Job."""
    container = {"name": "main", "image": "localhost/none", "command": ["true"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"run-{number:05d}-bare-00000", "namespace": NAMESPACE},
        "spec": {"template": {"spec": {"containers": [container], "restartPolicy": "Never"}}},
    }


def is_done(obj: Object) -> bool:
    """Whether the object's condition Ready is True."""
    conditions = obj.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def ours(kind: str, namespace: str, name: str, spec: Object) -> Object:
    """An object of one of the operator's kinds."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
