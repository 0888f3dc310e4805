# SPDX-License-Identifier: Apache-2.0
"""The prediction of a run: from the profile to preflight, into the status, and compared with what it took."""

from typing import Any

import pytest

from finetune_operator.plan import Manifest
from finetune_trainer.contract.prediction import Prediction
from finetune_trainer.contract.results import StageResult
from tests.unit.operator.memorycluster import MemoryCluster
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

GIBIBYTE = 1 << 30
H100 = "NVIDIA-H100-80GB-HBM3"
PREDICTED = Prediction(
    device_memory_bytes=31 * GIBIBYTE,
    device_memory_available_bytes=80 * GIBIBYTE,
    host_memory_bytes=16 * GIBIBYTE,
    state_bytes=20 * GIBIBYTE,
    flops=2.7e18,
    seconds_low=7800,
    seconds_high=7800,
    mfu=0.35,
    mfu_assumed=True,
    verdict="Fits",
    chosen=("batches of 4 rows: 8 would need 84 GiB",),
)


def predicted(**fields: Any) -> StageResult:
    """A result of preflight with a prediction."""
    result = preflighted()
    assert result.preflight is not None
    prediction = PREDICTED.model_copy(update=fields)
    return result.model_copy(
        update={"preflight": result.preflight.model_copy(update={"prediction": prediction})}
    )


def begun(spec: Manifest | None = None, **compute: Any) -> MemoryCluster:
    """A run on one H100 whose preflight has started."""
    gpus = profile(
        accelerator={"resource": "nvidia.com/gpu", "product": H100, "maxPerPod": 8},
        cost={"pricePerDeviceHour": 3, "currency": "EUR"},
        **spec or {},
    )
    cluster = MemoryCluster(
        gpus, claim("artifacts"), claim("models"), dataset(), finetunejob(compute=compute)
    )
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    return cluster


def trains(**fields: Any) -> MemoryCluster:
    """The same run when its train Job exists."""
    cluster = begun()
    cluster.succeed("preflight", predicted(**fields), after=10)
    cluster.settle()
    return cluster


def status_of(cluster: MemoryCluster) -> Any:
    return cluster.objects["FineTuneJob", JOB]["status"]


def message(cluster: MemoryCluster, type_: str) -> str:
    condition = cluster.condition("FineTuneJob", JOB, type_)
    assert condition is not None
    text: str = condition["message"]
    return text


def test_preflight_gets_the_facts_about_the_devices() -> None:
    config = begun(onPredictedOutOfMemory="Warn").config("preflight")
    assert (config.device.product, config.device.memory_bytes) == (H100, 80 * GIBIBYTE)
    assert (config.device.peak_teraflops, config.mfu) == (989, None)
    assert config.on_predicted_out_of_memory == "Warn"
    assert begun().config("preflight").on_predicted_out_of_memory == "Refuse"


def test_the_prediction_is_in_the_status_the_message_the_event_and_the_columns() -> None:
    cluster = trains()
    status = status_of(cluster)
    expected = "about 2 h 10 min on one H100, 31 of 80 GiB, EUR 6.50, at an assumed 35% of the device's peak"
    assert f"predicted: {expected}; batches of 4 rows" in message(cluster, "Preflighted")
    started = [event for event in cluster.events if event.reason == "StageStarted"][-1]
    assert started.message.endswith(f": {expected}")
    assert [event for event in cluster.events if event.type == "Warning"] == []
    assert status["display"]["predicted"] == "2 h 10 min, 31 of 80 GiB, EUR 6.50"
    prediction = status["prediction"]
    assert (prediction["device"], prediction["peakTeraflops"]) == (H100, 989)
    assert (prediction["costLow"], prediction["costHigh"], prediction["currency"]) == (6.5, 6.5, "EUR")


@pytest.mark.parametrize("verdict", ["Tight", "TooLarge"])
def test_a_tight_prediction_is_a_warning_event_once(verdict: str) -> None:
    cluster = trains(verdict=verdict, device_memory_bytes=90 * GIBIBYTE)
    warnings = [event for event in cluster.events if event.type == "Warning"]
    assert [event.reason for event in warnings] == ["PredictedTight"]
    assert "90 of 80 GiB per device" in warnings[0].message


def test_the_pods_of_train_are_sized_from_the_prediction() -> None:
    pod = trains().stage_job("train")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["memory"] == "20Gi"
    assert pod["terminationGracePeriodSeconds"] == 270


def test_a_refusal_ends_the_run_before_a_device_is_requested() -> None:
    cluster = begun()
    text = "needs 142 GiB per device of 80; QLoRA needs 51"
    refused = StageResult(
        stage="preflight", run=predicted().run, outcome="Failed", reason="PredictedOutOfMemory", message=text
    )
    cluster.end("preflight", refused.to_json(), exit_code=10, after=10)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Stalled"] == "PredictedOutOfMemory"
    assert text in message(cluster, "Stalled")
    assert not cluster.has_stage_job("train")


def finish_training(cluster: MemoryCluster, *, seconds: int = 8400, **fields: Any) -> None:
    """Let train succeed after this many seconds; ten minutes of them are its start."""
    result = trained()
    assert result.train is not None
    figures = {
        "tokens_per_second": result.train.tokens / (seconds - 600),
        "device_memory_bytes": 30 * GIBIBYTE,
        **fields,
    }
    cluster.start("train")
    cluster.succeed(
        "train",
        result.model_copy(update={"train": result.train.model_copy(update=figures)}),
        after=seconds,
    )
    cluster.settle()


def test_a_trained_run_compares_the_prediction_with_what_it_took() -> None:
    cluster = trains()
    finish_training(cluster)
    took = "2 h 10 min, 30 GiB, EUR 7.00"
    assert f"; took {took}, predicted 2 h 10 min, 31 of 80 GiB, EUR 6.50" in message(cluster, "Trained")
    assert status_of(cluster)["display"]["took"] == took
    assert status_of(cluster)["prediction"]["measured"] == {
        "deviceMemoryBytes": 30 * GIBIBYTE,
        "seconds": 7800.0,
        "cost": 7.0,
        "mfu": 0.35,
    }


def test_a_run_that_stopped_early_counts_only_the_steps_that_it_made() -> None:
    cluster = trains()
    finish_training(cluster, steps=20, stopped_early=True)
    assert status_of(cluster)["prediction"]["measured"]["mfu"] == 0.175


@pytest.mark.parametrize("tokens_per_second", [None, 1e9])
def test_a_utilization_that_was_not_measured_or_is_impossible_is_left_out(
    tokens_per_second: float | None,
) -> None:
    cluster = trains()
    finish_training(cluster, tokens_per_second=tokens_per_second)
    assert "mfu" not in status_of(cluster)["prediction"]["measured"]


def test_the_next_run_of_the_profile_gets_the_measured_utilization() -> None:
    cluster = trains()
    finish_training(cluster)
    other = finetunejob()
    other["metadata"] = {"name": "tickets-v2", "uid": "0b5e7a10-0000-4000-8000-000000000002"}
    cluster.add(other)
    cluster.settle()
    configs = [job for job in cluster.of("Job").values() if "tickets-v2-preflight" in job["metadata"]["name"]]
    variables = configs[0]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert '"mfu":0.35' in variables[0]["value"]


def test_without_a_prediction_nothing_is_said_about_it() -> None:
    cluster = begun()
    cluster.succeed("preflight", preflighted(), after=10)
    cluster.settle()
    assert "prediction" not in status_of(cluster)
    assert "predicted" not in message(cluster, "Preflighted")
    finish_training(cluster)
    assert "took" not in message(cluster, "Trained")
    assert "took" not in status_of(cluster)["display"]


@pytest.mark.parametrize(
    ("resource", "accelerators"),
    [
        ("nvidia.com/gpu", {"train": 1}),
        ("nvidia.com/mig-1g.10gb", {"train": 1}),
        ("example.com/gpu", {"train": 0}),
        ("cpu", {"train": 0}),
    ],
)
def test_only_stages_that_request_nvidia_devices_check_them(
    resource: str, accelerators: dict[str, int]
) -> None:
    cluster = MemoryCluster(
        profile(accelerator={"resource": resource, "maxPerPod": 8}),
        *(claim("artifacts"), claim("models"), dataset(), finetunejob()),
    )
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    assert cluster.config("preflight").accelerators == 0
    cluster.succeed("preflight", preflighted(), after=10)
    cluster.settle()
    assert cluster.config("train").accelerators == accelerators["train"]


@pytest.mark.parametrize(
    ("weights", "devices"), [(None, 1), (63 * GIBIBYTE, 1), (65 * GIBIBYTE, 4), (140 * GIBIBYTE, 4)]
)
def test_evaluation_gets_the_devices_of_training_where_one_does_not_hold_the_model(
    weights: int | None, devices: int
) -> None:
    cluster = begun(devices=4)
    cluster.succeed("preflight", predicted(weights_bytes=weights), after=10)
    cluster.settle()
    cluster.succeed("train", trained(), after=100)
    cluster.settle()

    (container,) = cluster.stage_job("evaluate")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(devices)
    assert cluster.config("evaluate").accelerators == devices
