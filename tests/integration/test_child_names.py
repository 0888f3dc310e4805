# SPDX-License-Identifier: Apache-2.0
"""The API server takes every object that the operator makes, whatever the lengths of the users' names.

Passes over objects with names of one length lead to every builder of `finetune_operator.manifests` and every
stage; what they create is created in a dry run. A new builder or stage that they do not reach fails the test.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import CodeType, FrameType
from typing import Any, Final

import pytest

from finetune_operator import manifests
from finetune_operator.api.labels import STAGE
from finetune_operator.api.meta import NAME_LIMIT
from finetune_operator.manifests.labels import LABEL_VALUE_LIMIT
from finetune_operator.plan import Create, Manifest
from finetune_operator.stage_table import STAGES
from finetune_trainer.contract.results import CheckpointResult, StageResult
from tests.integration.api import Api
from tests.integration.rules.requests import try_create
from tests.mergepatch import merged
from tests.unit.operator import endpoints
from tests.unit.operator.endpoints import EndpointCluster, checkpoint
from tests.unit.operator.memorycluster import FACTS, MemoryCluster
from tests.unit.operator.runobjects import (
    JOB_UID,
    claim,
    dataset,
    finetunejob,
    preflighted,
    prepared,
    profile,
    trained,
)
from tests.unit.operator.test_endpoint_analysis import CANARY, ready_pod
from tests.unit.operator.test_endpoint_basemodel import STORED
from tests.unit.operator.test_endpoint_drift import edit
from tests.unit.operator.test_endpoint_gateway import TRAFFIC
from tests.unit.operator.test_endpoint_merge import MERGED, MODELS
from tests.unit.operator.test_reconcile_score import METRIC, scored, to_score

RECORDS: Final = ("Checkpoint", "DatasetVersion")
OWN_ROWS: Final = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
MAX_STEP: Final = 9_999_999
"""Seven digits: the last step of a year of five steps per second is larger by one digit."""


class RecordingCluster(MemoryCluster):
    """A cluster that keeps every object that a pass made, also the deleted ones."""

    def __init__(self, *objects: Manifest, **facts: Any) -> None:
        self.made: dict[tuple[str, str], Manifest] = {}
        super().__init__(*objects, **facts)

    def _create(self, create: Create) -> None:
        self._keep(create.manifest)
        super()._create(create)

    def _apply(self, manifest: Manifest) -> None:
        if (manifest["kind"], manifest["metadata"]["name"]) not in self.objects:
            self._keep(manifest)
        super()._apply(manifest)

    def _keep(self, manifest: Manifest) -> None:
        self.made[manifest["kind"], manifest["metadata"]["name"]] = manifest


def _run(name: str, **spec: Any) -> Manifest:
    fields = {"modelLine": name, "dataset": {"ref": {"name": name}}, "deletionPolicy": "Delete", **spec}
    run: Manifest = merged(finetunejob(), {"metadata": {"name": name}, "spec": fields})
    return run


def _cluster(name: str, *objects: Manifest) -> RecordingCluster:
    cluster = RecordingCluster(
        profile(name, allow={"customCode": True}),
        claim("artifacts"),
        claim("models"),
        merged(dataset(), {"metadata": {"name": name}}),
        *objects,
        facts=FACTS,
    )
    cluster.settle()
    return cluster


def _with_long_step(result: StageResult) -> StageResult:
    assert result.train is not None
    saved: tuple[CheckpointResult, ...] = tuple(
        each.model_copy(update={"step": MAX_STEP}) for each in result.train.checkpoints
    )
    return result.model_copy(update={"train": result.train.model_copy(update={"checkpoints": saved})})


def _remove(cluster: MemoryCluster, *kinds: str) -> None:
    """Delete the objects of these kinds one by one; the Job that removes the content of each succeeds."""
    for kind in kinds:
        for name in cluster.of(kind):
            cluster.delete(kind, name)
            for _ in range(3):
                if (kind, name) in cluster.objects:
                    cluster.reconcile(kind, name)
                for job in cluster.of("Job").values():
                    if job["metadata"]["labels"][STAGE] == "cleanup" and "conditions" not in job["status"]:
                        cluster.end("cleanup", "")
            assert (kind, name) not in cluster.objects


def run_with_metrics(name: str) -> RecordingCluster:
    """A run whose metrics of the user are scored, until all that it left is removed."""
    cluster = _cluster(name, _run(name, evaluation={"customMetrics": [METRIC]}))
    to_score(cluster)
    cluster.succeed("score", scored(), after=5)
    cluster.settle()
    evaluation = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "Evaluation",
        "metadata": {"name": name},
        "spec": {"checkpoints": list(cluster.of("Checkpoint")), "dataset": {"ref": {"name": name}}},
    }
    cluster.add(evaluation)
    cluster.settle()
    cluster.remove("Evaluation", name)
    _remove(cluster, "FineTuneJob", *RECORDS)
    return cluster


def run_with_own_rows(name: str) -> RecordingCluster:
    """A run with rows of its own and a great number of steps, until all that it left is removed."""
    cluster = _cluster(name, _run(name, dataset={"ref": None, **OWN_ROWS}, evaluation=None))
    cluster.remove("Dataset", name)
    for stage, result in (
        ("prepare", prepared(JOB_UID)),
        ("preflight", preflighted()),
        ("train", _with_long_step(trained())),
    ):
        cluster.succeed(stage, result, after=5)
        cluster.settle()
    (made,) = cluster.of("Checkpoint")
    assert len(made) == len(name) + 23
    _remove(cluster, "FineTuneJob", *RECORDS)
    return cluster


def run_in_two_pods(name: str) -> RecordingCluster:
    """A run in two pods; the result of an earlier stage is read from the store."""
    cluster = _cluster(name, _run(name, compute={"nodes": 2}))
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    cluster.end_job("preflight", "Complete")
    cluster.now += timedelta(seconds=11)
    cluster.settle()
    cluster.succeed("collect", preflighted(), after=5)
    cluster.settle()
    return cluster


def endpoint_with_analysis(name: str) -> RecordingCluster:
    """A canary behind a gateway, with an analysis, a NetworkPolicy and a PodDisruptionBudget."""
    spec = {"strategy": CANARY, "replicas": 5, "networkPolicy": {"allowFrom": []}}
    return _rolled_out(name, traffic=TRAFFIC, **spec)


def endpoint_with_preview(name: str) -> RecordingCluster:
    return _rolled_out(name, strategy={"type": "BlueGreen"}, replicas=2)


def endpoint_with_merged_models(name: str) -> RecordingCluster:
    """An endpoint with a merged model in a model cache, whose Deployment is edited by a person."""
    cluster = _endpoint(name, models=MODELS)
    cluster.put(
        claim("cache", "ReadWriteMany"), endpoints.profile(serving={"modelCache": {"claim": "cache"}})
    )
    cluster.settle()
    cluster.cluster.end("merge", MERGED.to_json())
    cluster.settle()
    cluster.cluster.end("fill", "")
    cluster.settle()
    (revision,) = cluster.deployments
    edit(cluster, revision)
    cluster.edit(replicas=2)
    cluster.settle()
    return _recorded(cluster)


def endpoint_of_a_base_model(name: str) -> RecordingCluster:
    base = {"uri": "hf://google/gemma-3-270m", "credentialsSecretRef": {"name": "hub"}}
    cluster = _endpoint(name, models=[], baseModel=base)
    cluster.settle()
    cluster.cluster.end("download", STORED.to_json())
    cluster.settle()
    return _recorded(cluster)


def _endpoint(name: str, **spec: Any) -> EndpointCluster:
    first = checkpoint("first", "1", probe=endpoints.digest("9"))
    return EndpointCluster(first, cluster=RecordingCluster(facts=endpoints.FACTS), name=name, **spec)


def _rolled_out(name: str, **spec: Any) -> RecordingCluster:
    cluster = _endpoint(name, **spec)
    cluster.settle()
    _make_ready(cluster)
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    _make_ready(cluster)
    return _recorded(cluster)


def _make_ready(cluster: EndpointCluster) -> None:
    """Carry out passes while pods become ready and the gateway takes each change of the route."""
    for _ in range(6):
        for number, revision in enumerate(list(cluster.deployments)):
            cluster.make_ready(revision)
            cluster.put(ready_pod(revision, f"10.0.0.{number}"))
        cluster.settle()
        for name, route in cluster.routes.items():
            cluster.routes[name] = {**route, "status": {"parents": [_accepted(route)]}}
    cluster.settle()


def _accepted(route: Manifest) -> Manifest:
    generation = route["metadata"]["generation"]
    conditions = [
        {"type": type_, "status": "True", "reason": type_, "message": "", "observedGeneration": generation}
        for type_ in ("Accepted", "ResolvedRefs")
    ]
    return {
        "parentRef": dict(route["spec"]["parentRefs"][0]),
        "controllerName": "example.com/gateway-controller",
        "conditions": conditions,
    }


def _recorded(cluster: EndpointCluster) -> RecordingCluster:
    assert isinstance(cluster.cluster, RecordingCluster)
    return cluster.cluster


SITUATIONS: Final[tuple[Callable[[str], RecordingCluster], ...]] = (
    run_with_metrics,
    run_with_own_rows,
    run_in_two_pods,
    endpoint_with_analysis,
    endpoint_with_preview,
    endpoint_with_merged_models,
    endpoint_of_a_base_model,
)


def _builders() -> dict[CodeType, str]:
    """The functions of `finetune_operator.manifests` that build objects, by their code."""
    found = {}
    for module in pkgutil.walk_packages(manifests.__path__, f"{manifests.__name__}."):
        for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            if name.startswith("build_") and function.__module__ == module.name:
                found[function.__code__] = f"{module.name}.{name}"
    return found


@contextmanager
def _calls(codes: dict[CodeType, str]) -> Iterator[set[str]]:
    """The names of those of the functions that are called inside the block."""
    called: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in codes:
            called.add(codes[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("length", [1, NAME_LIMIT])
def test_every_object_of_every_builder_is_accepted(api: Api, namespace: str, length: int) -> None:
    builders, made = _builders(), list[Manifest]()
    with _calls(builders) as called:
        for situation in SITUATIONS:
            made += situation("n" * length).made.values()
    assert called == set(builders.values()), "add a situation that reaches the new builder"
    jobs = [each for each in made if each["kind"] == "Job"]
    assert {job["metadata"]["labels"][STAGE] for job in jobs} == set(STAGES), "add one for the new stage"

    placed = [merged(each, {"metadata": {"namespace": namespace}}) for each in made]
    accounts = {each["metadata"]["name"]: each for each in placed if each["kind"] == "ServiceAccount"}
    for account in accounts.values():
        api.create(account)
    pods = [_pod(each, namespace) for each in placed if each["kind"] == "Job"]
    # A route has the name and the labels of a Service, and no test before those of gateways defines its type.
    objects = [each for each in placed if each["kind"] not in {"ServiceAccount", "HTTPRoute"}]
    refused = {
        f"{obj['kind']} {obj['metadata']['name']}": verdict.message
        for obj in (*objects, *pods)
        if not (verdict := try_create(api, obj)).accepted
    }
    assert refused == {}
    assert max(len(each["metadata"]["name"]) for each in placed) <= LABEL_VALUE_LIMIT


def _pod(job: Manifest, namespace: str) -> Manifest:
    """The last pod of a Job, with the name, the labels and the host name that the Job controller gives it."""
    name, template = job["metadata"]["name"], job["spec"]["template"]
    labels, spec = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": name}, template["spec"]
    if job["spec"]["completionMode"] == "Indexed":
        name = f"{name}-{job['spec']['completions'] - 1}"
        labels["batch.kubernetes.io/job-completion-index"] = "1"
        spec = {**spec, "hostname": name}
    metadata = {"name": f"{name[:57]}-abcde", "namespace": namespace, "labels": labels}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {**spec, "restartPolicy": "Never"},
    }
