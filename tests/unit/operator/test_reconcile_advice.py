# SPDX-License-Identifier: Apache-2.0
"""Advice in the status of a run, from what it and the runs before it measured."""

from collections.abc import Iterable
from typing import Any

import pytest

from finetune_operator.plan import Manifest
from finetune_trainer.contract.prediction import Prediction
from tests.unit.operator.memorycluster import NAMESPACE, MemoryCluster
from tests.unit.operator.runobjects import (
    JOB,
    claim,
    dataset,
    finetunejob,
    preflighted,
    prepared,
    profile,
    trained,
)

GIB = 1 << 30
GPU = {"resource": "nvidia.com/gpu", "maxPerPod": 8}


def gpus(
    name: str,
    memory: int,
    price: float | None,
    *,
    default: bool = False,
    device: Manifest | None = None,
    **spec: Any,
) -> Manifest:
    priced = {} if price is None else {"cost": {"pricePerDeviceHour": price, "currency": "EUR"}}
    fields = {"accelerator": {**GPU, "memory": f"{memory}Gi", **(device or {})}, **priced, **spec}
    return profile(name, default=default, **fields)


def earlier(number: int, gib: float, namespace: str = "team", model: str = "ticket-routing") -> Manifest:
    """A finished run on the profile `large`."""
    at = f"2029-12-01T0{number}:00:00Z"
    conditions = [
        {"type": type_, "status": "True", "lastTransitionTime": at} for type_ in ("Trained", "Ready")
    ]
    run = finetunejob(modelLine=model)
    return {
        **run,
        "metadata": {"name": f"before-{number}", "uid": f"before-{number}", "namespace": namespace},
        "status": {
            "resolved": {"profile": "large"},
            "training": {"steps": 1, "deviceMemoryBytes": int(gib * GIB)},
            "prediction": {"deviceMemoryAvailableBytes": 80 * GIB},
            "conditions": conditions,
        },
    }


def finished(
    *others: Manifest,
    history: Iterable[Manifest] = (),
    peak: float | None = 9.2,
    weights: float | None = None,
    **spec: Any,
) -> MemoryCluster:
    """A run on the profile `large` that has trained, next to these objects and after these runs."""
    large = gpus("large", 80, 2.9, default=True)
    cluster = MemoryCluster(
        large, *others, claim("artifacts"), claim("models"), dataset(), finetunejob(**spec)
    )
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    prediction = Prediction(
        device_memory_bytes=10 * GIB,
        device_memory_available_bytes=80 * GIB,
        host_memory_bytes=GIB,
        state_bytes=GIB,
        flops=1e18,
        weights_bytes=None if weights is None else int(weights * GIB),
    )
    result = preflighted()
    assert result.preflight is not None
    predicted = result.preflight.model_copy(update={"prediction": prediction})
    cluster.succeed("preflight", result.model_copy(update={"preflight": predicted}), after=10)
    cluster.settle()
    end = trained()
    assert end.train is not None
    memory = None if peak is None else int(peak * GIB)
    measured = end.train.model_copy(update={"device_memory_bytes": memory})
    cluster.succeed("train", end.model_copy(update={"train": measured}), after=3600)
    for run in history:
        cluster.add(run)
    cluster.reconcile("FineTuneJob", JOB)
    return cluster


def advice(cluster: MemoryCluster) -> list[dict[str, str]]:
    found: list[dict[str, str]] = cluster.objects["FineTuneJob", JOB]["status"].get("advice", [])
    return found


SMALL = gpus("small", 24, 0.6)


def test_a_cheaper_profile_that_is_large_enough_is_named_once() -> None:
    cluster = finished(SMALL, gpus("medium", 40, 1.5), gpus("tiny", 10, 0.1))
    message = (
        "this run used at most 9.2 of 80 GiB per device: ComputeProfile small (24 GiB, EUR 0.60 instead of"
        " EUR 2.90 per device hour) is large enough"
    )
    assert advice(cluster) == [{"reason": "SmallerProfile", "profile": "small", "message": message}]
    events = [event for event in cluster.events if event.reason == "ProfileAdvice"]
    assert [(event.type, event.message) for event in events] == [("Normal", message)]


def test_the_last_five_runs_of_the_model_line_decide() -> None:
    peaks = [30.0, 9.0, 12.5, 8.0, 8.0]
    runs = [earlier(number, peak) for number, peak in enumerate(peaks)]
    others = [earlier(6, 70, namespace="other"), earlier(7, 70, model="other")]
    (found,) = advice(finished(SMALL, history=[*runs, *others]))
    assert found["message"].startswith(
        "the last 5 runs of this model line with this profile used at most 12 of 80 GiB per device"
    )


def test_an_earlier_run_that_needed_more_prevents_the_advice() -> None:
    assert advice(finished(SMALL, history=[earlier(1, 23)])) == []


@pytest.mark.parametrize(
    "other",
    [
        gpus("small", 24, 0.6, namespaces={"names": ["other"]}),
        gpus("small", 24, 0.6, namespaces={"selector": {"matchLabels": {"gpus": "small"}}}),
        gpus("small", 24, 0.6, device={"resource": "amd.com/gpu"}),
        gpus("small", 24, 0.6, device={"maxPerPod": 1}),
        gpus("small", 24, 0.6, serving={"engine": "VLLM"}, images={"engine": "vllm:1"}),
        gpus("small", 24, 0.6, images={"trainer": "registry.example/rocm:1"}),
        gpus("small", 24, 0.6, store={"uri": "pvc://elsewhere"}),
        gpus("small", 24, 0.6, limits={"runSeconds": 60}),
        profile("small", default=False, cost={"pricePerDeviceHour": 0.1, "currency": "EUR"}),
    ],
    ids=[
        "namespace",
        "namespace by labels",
        "vendor",
        "devices",
        "engine",
        "image",
        "store",
        "time limit",
        "CPU",
    ],
)
def test_a_profile_that_the_run_could_not_have_used_is_not_named(other: Manifest) -> None:
    assert advice(finished(other, compute={"devices": 2})) == []


def test_a_slice_of_a_card_of_the_same_vendor_is_named() -> None:
    mig = gpus("mig", 20, 0.5, device={"resource": "nvidia.com/mig-2g.20gb", "maxPerPod": 1})
    assert [each["profile"] for each in advice(finished(mig))] == ["mig"]


def test_nothing_is_advised_from_a_prediction_alone() -> None:
    assert advice(finished(SMALL, peak=None)) == []


@pytest.mark.parametrize(("weights", "named"), [(19.0, True), (20.0, False), (None, True)])
def test_the_weights_must_fit_in_evaluation(weights: float | None, *, named: bool) -> None:
    """Evaluation of a 24 GiB device may use 19.2 GiB for weights."""
    assert bool(advice(finished(SMALL, weights=weights))) == named


def test_evaluation_on_a_profile_of_its_own_does_not_matter() -> None:
    evaluation = {"gates": [{"metric": "exact_match", "min": 0.8}], "profile": "large"}
    assert advice(finished(SMALL, weights=40.0, evaluation=evaluation))


def test_a_slower_device_is_named_with_how_long_it_takes() -> None:
    slow = gpus("slow", 24, 0.5, device={"peakTeraflops": 200})
    fast = gpus("large", 80, 2.9, default=True, device={"peakTeraflops": 1000})
    (found,) = advice(finished(slow, fast))
    assert found["message"].endswith(
        "is large enough; by the peaks of the devices, training takes about 5.0 times as long, at 86%"
        " of the cost"
    )


@pytest.mark.parametrize(("team", "names"), [("ml", ["small"]), ("web", [])])
def test_a_profile_that_selects_the_namespace_by_its_labels_is_advised(team: str, names: list[str]) -> None:
    """The profile of the run is open, so the run itself needs no labels."""
    selected = gpus("small", 24, 0.6, namespaces={"selector": {"matchLabels": {"team": "ml"}}})
    namespace = {"kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {"team": team}}}
    cluster = finished(selected, namespace)
    assert [each["profile"] for each in advice(cluster)] == names
