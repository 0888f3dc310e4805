# SPDX-License-Identifier: Apache-2.0
"""What blocks a run: each state reports what to repair, and ends by itself once it is repaired."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.api.evaluation import Gate
from finetune_operator.api.meta import Reserved
from finetune_operator.plan import Manifest
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    JOB,
    STORE,
    claim,
    dataset,
    finetunejob,
    profile,
)


def cluster_of(*objects: Manifest, **spec: Any) -> MemoryCluster:
    cluster = MemoryCluster(*objects, dataset(store={"uri": "pvc://artifacts"}), finetunejob(**spec))
    cluster.settle()
    return cluster


def with_claims(*objects: Manifest) -> tuple[Manifest, ...]:
    return (*objects, claim("artifacts", "ReadWriteMany"), claim("models"))


OWN_ROWS = {"source": {"uri": "pvc://rows/tickets.csv"}}
Mend = Callable[[MemoryCluster], object]

BLOCKED: list[tuple[str, tuple[Manifest, ...], dict[str, Any], str, str, Mend]] = [
    (
        "no profile is the default",
        with_claims(profile(default=False)),
        {},
        "ProfileNotFound",
        'annotate one with finetune.dev/is-default-profile: "true"; profiles for this namespace: cpu',
        lambda c: c.objects["ComputeProfile", "cpu"]["metadata"].update(
            labels={"finetune.dev/is-default-profile": "true"}
        ),
    ),
    (
        "two profiles are the default",
        with_claims(profile(), profile("gpu")),
        {},
        "DefaultProfileConflict",
        "more than one ComputeProfile is marked as the default (cpu, gpu)",
        lambda c: c.remove("ComputeProfile", "gpu"),
    ),
    (
        "the named profile does not exist",
        with_claims(profile()),
        {"compute": {"profile": "a100"}},
        "ProfileNotFound",
        "spec.compute.profile does not exist: create it, or name another; profiles for this namespace: cpu",
        lambda c: c.add(profile("a100", default=False)),
    ),
    (
        "the evaluation's profile does not exist",
        with_claims(profile()),
        {"evaluation": {"profile": "l4"}},
        "ProfileNotFound",
        "ComputeProfile l4 of spec.evaluation.profile does not exist",
        lambda c: c.add(profile("l4", default=False)),
    ),
    (
        "the profile is for others",
        with_claims(profile(namespaces={"names": ["research"]})),
        {},
        "ProfileNotAllowed",
        "ask the platform team to add it to the profile's namespaces.names",
        lambda c: c.change("ComputeProfile", "cpu", namespaces={"names": ["research", "team"]}),
    ),
    (
        "more pods than the profile allows",
        with_claims(profile(limits={"nodes": 2})),
        {"compute": {"nodes": 4}},
        "TooManyNodes",
        "spec.compute.nodes is 4, but ComputeProfile cpu allows 2: request fewer, or ask the platform team",
        lambda c: c.change("ComputeProfile", "cpu", limits={"nodes": 4}),
    ),
    (
        "the profile's trainer speaks another contract",
        with_claims(profile(images={"trainer": "registry/trainer:9", "trainerContract": 9})),
        {},
        "ProfileInvalid",
        "images.trainerContract 9, but this operator supports 2: use a trainer image of this release",
        lambda c: c.change("ComputeProfile", "cpu", images={"trainer": "registry/trainer:9"}),
    ),
    (
        "more devices than the profile allows",
        with_claims(profile()),
        {"compute": {"devices": 8}},
        "TooManyDevices",
        "spec.compute.devices is 8, but ComputeProfile cpu allows 4 per pod",
        lambda c: c.change("ComputeProfile", "cpu", accelerator={"resource": "cpu", "maxPerPod": 8}),
    ),
    (
        "no store anywhere",
        with_claims(profile(store=None)),
        {},
        "StoreMissing",
        "set spec.store.uri, for example pvc://artifacts, or spec.store of ComputeProfile cpu",
        lambda c: c.change("ComputeProfile", "cpu", store={"uri": "pvc://artifacts"}),
    ),
    (
        "the profile's store is no place",
        with_claims(profile(store={"uri": "s3:///team"})),
        {},
        "ProfileInvalid",
        "store: s3:///team is not a valid store: write pvc://CLAIM/FOLDER, s3://BUCKET/FOLDER",
        lambda c: c.change("ComputeProfile", "cpu", store={"uri": "s3://bucket/team"}),
    ),
    (
        "the store's claim does not exist",
        (profile(), claim("models")),
        {},
        "StoreNotFound",
        "store pvc://artifacts does not exist in namespace team: create it (accessModes: [ReadWriteOnce])",
        lambda c: c.add(claim("artifacts")),
    ),
    (
        "the claim that pods on several nodes share does not exist",
        (profile(store={"uri": STORE}), claim("models", "ReadWriteMany")),
        {},
        "StoreNotFound",
        "create it (accessModes: [ReadWriteMany])",
        lambda c: c.add(claim("artifacts", "ReadWriteMany")),
    ),
    (
        "the store's claim can be on one node only",
        (profile(store={"uri": STORE}), claim("artifacts"), claim("models")),
        {},
        "StoreNotShareable",
        "has accessModes ReadWriteOnce, so pods on other nodes cannot mount it: use a claim with",
        lambda c: c.change("ComputeProfile", "cpu", store={"uri": STORE, "accessMode": "ReadWriteOnce"}),
    ),
    (
        "the source's claim does not exist",
        with_claims(profile()),
        {"dataset": OWN_ROWS},
        "SourceNotFound",
        "rows of spec.dataset.source.uri (pvc://rows/tickets.csv) does not exist",
        lambda c: c.add(claim("rows")),
    ),
    (
        "the base model's claim does not exist",
        (profile(), claim("artifacts")),
        {},
        "BaseModelNotFound",
        "PersistentVolumeClaim models of spec.baseModel.uri (pvc://models/gemma) does not exist",
        lambda c: c.add(claim("models")),
    ),
]


@pytest.mark.parametrize(
    ("objects", "spec", "reason", "message", "mend"),
    [row[1:] for row in BLOCKED],
    ids=[row[0] for row in BLOCKED],
)
def test_a_run_reports_what_is_missing_and_continues_when_it_exists(
    objects: tuple[Manifest, ...], spec: dict[str, Any], reason: str, message: str, mend: Mend
) -> None:
    cluster = cluster_of(*objects, **spec)
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    assert condition["reason"] == reason
    assert message in condition["message"]
    assert cluster.objects["FineTuneJob", JOB]["status"]["phase"] == "Blocked"
    assert not any(job.startswith(JOB) for job in cluster.of("Job"))
    assert cluster.plan("FineTuneJob", JOB).requeue_after is None
    mend(cluster)
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    assert condition["reason"] in {"Queued", "WaitingForDataset"}


def test_a_blocked_run_sends_one_event_for_one_reason() -> None:
    cluster = cluster_of(profile(), claim("models"))
    for _ in range(3):
        cluster.reconcile("FineTuneJob", JOB)
    sent = [event for event in cluster.events if event.reason == "Blocked" and "artifacts" in event.message]
    assert len({event.message for event in sent}) == 1
    assert cluster.plan("FineTuneJob", JOB).events == ()


def test_what_this_release_does_not_act_on_stalls_the_run_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Gate.model_fields["confidence"], "metadata", [Reserved()])
    message = "spec.evaluation.gates[0].confidence is not implemented in this release; remove it"
    spec = {"evaluation": {"gates": [{"metric": "loss", "max": 1, "confidence": 0.95}]}}
    cluster = cluster_of(*with_claims(profile()), **spec)
    condition = cluster.condition("FineTuneJob", JOB, "Stalled")
    assert condition is not None
    assert condition["reason"] == "NotImplemented"
    assert message in condition["message"]
    assert not any(job.startswith(JOB) for job in cluster.of("Job"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"store": {"uri": "pvc://Not_A_Name"}}, "spec.store.uri: pvc://Not_A_Name"),
        (
            {"store": {"uri": "s3://bucket/../other"}},
            "spec.store.uri: s3://bucket/../other is not a valid store",
        ),
        ({"baseModel": {"uri": "pvc://models/../../etc"}}, "has .. in its path"),
        ({"baseModel": {"uri": "hf://gemma"}}, "hf://gemma is not a valid location: write hf://ORG/NAME"),
        ({"dataset": {"source": {"uri": "configmap://rows"}}}, "has no valid key of a ConfigMap"),
    ],
)
def test_a_uri_that_points_nowhere_is_an_invalid_spec(spec: dict[str, Any], message: str) -> None:
    cluster = cluster_of(*with_claims(profile()), **spec)
    condition = cluster.condition("FineTuneJob", JOB, "Stalled")
    assert condition is not None
    assert condition["reason"] == "InvalidSpec"
    assert message in condition["message"]


def test_a_run_that_an_earlier_release_did_not_implement_starts_with_this_one() -> None:
    cluster = MemoryCluster(*with_claims(profile()), dataset(), finetunejob())
    stalled = {
        "type": "Stalled",
        "status": "True",
        "reason": "NotImplemented",
        "message": "spec.evaluation.gates[0].over: Live is not implemented in this release",
        "lastTransitionTime": "2030-01-02T03:00:00Z",
    }
    cluster.objects["FineTuneJob", JOB]["status"] = {"observedGeneration": 1, "conditions": [stalled]}
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB) == {"Reconciling": "WaitingForDataset"}
