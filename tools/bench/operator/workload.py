# SPDX-License-Identifier: Apache-2.0
"""Manifests of the benchmark: runs of a team on one Dataset, and copies of a completed run."""

import json
from collections.abc import Iterator
from typing import Any, Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import DEFAULT_PROFILE_LABEL
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.meta import API_VERSION
from finetune_operator.manifests.labels import RECORDED_RUN
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunejob.identity import mark
from finetune_operator.reconcile.model_lines import CheckpointIndex
from finetune_operator.reconcile.promotion import decide_promotion

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


SERVER_FIELDS: Final = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")


class Copies:
    """Makes numbered copies of a run and a Checkpoint."""

    def __init__(self, job: Manifest, checkpoint: Manifest) -> None:
        self._job = json.dumps(_made_by_user(job))
        self._checkpoint = json.dumps(_made_by_user(checkpoint))
        self._names = (job["metadata"]["name"], checkpoint["metadata"]["name"], job["spec"]["modelLine"])
        self._digest = checkpoint["spec"]["digest"]

    def job(self, number: int, model: str) -> Manifest:
        """Copy number `number` of the run; equal numbers give equal copies."""
        copy = self._copy(self._job, number, model)
        known = {**copy, "metadata": {**copy["metadata"], "uid": "of-the-original"}}
        copy["metadata"]["annotations"] = {RECORDED_RUN: mark(FineTuneJob.model_validate(known))}
        return copy

    def checkpoints(self, number: int, model: str, uid: str) -> Iterator[Manifest]:
        """The promoted Checkpoint of the run with this uid, and one that is not promoted."""
        for which in ("best", "other"):
            copy = self._copy(self._checkpoint, number, model)
            copy["spec"]["lineage"]["job"]["uid"] = uid
            if which == "other":
                copy["metadata"]["name"] = f"run-{number:05d}-20-other"
                copy["spec"].update(step=20, digest=_digest(number, which))
                _withdraw_promotion(copy, self._copy(self._job, number, model))
            yield copy

    def _copy(self, text: str, number: int, model: str) -> Manifest:
        job, checkpoint, line = self._names
        # The Checkpoint's name begins with the run's.
        for old, new in (
            (checkpoint, checkpoint_name(number)),
            (f'"{job}"', f'"run-{number:05d}"'),
            (f'"{line}"', f'"{model}"'),
            (self._digest, _digest(number, "best")),
            (self._digest.removeprefix("sha256:"), _digest(number, "best").removeprefix("sha256:")),
        ):
            text = text.replace(old, new)
        copy: Manifest = json.loads(text)
        return copy


def _withdraw_promotion(checkpoint: Manifest, job: Manifest) -> None:
    """Write the status of a Checkpoint that its run did not promote."""
    status = checkpoint["status"]
    for field in ("promotedAt", "evaluations", "display"):
        status.pop(field, None)
    run = FineTuneJob.model_validate(job)
    decision = decide_promotion(Checkpoint.model_validate(checkpoint), run, CheckpointIndex())
    condition = next(each for each in status["conditions"] if each["type"] == "Promoted")
    condition.update(status="False", reason=str(decision.reason), message=decision.message)


def _made_by_user(obj: Manifest) -> Manifest:
    metadata = {key: value for key, value in obj["metadata"].items() if key not in SERVER_FIELDS}
    return {**obj, "metadata": metadata}


def checkpoint_name(number: int) -> str:
    """Name of the promoted Checkpoint of copy `number`."""
    return f"run-{number:05d}-40-best"


def _digest(number: int, which: str) -> str:
    return f"sha256:{number:032x}{which.encode().hex():0>32}"
