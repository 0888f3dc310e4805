# SPDX-License-Identifier: Apache-2.0
"""Predictions in messages and columns."""

from typing import Any

import pytest

from finetune_operator.api.finetune_job_status import MeasuredTraining, Prediction
from finetune_operator.status.prediction import (
    TrainDevices,
    columns,
    find_warning,
    measured_message,
    predicted_message,
    predicted_status,
)
from finetune_trainer.contract.accelerators import GIBIBYTE, DeviceFacts
from finetune_trainer.contract.prediction import Prediction as Predicted

H100 = "NVIDIA-H100-80GB-HBM3"


def prediction(**fields: Any) -> Prediction:
    known: dict[str, Any] = {
        "verdict": "Fits",
        "device_memory_bytes": 31 * GIBIBYTE,
        "device_memory_available_bytes": 80 * GIBIBYTE,
        "host_memory_bytes": 2 * GIBIBYTE,
        "state_bytes": GIBIBYTE,
        "flops": 3e18,
        "device": H100,
        "seconds_low": 7800,
        "seconds_high": 7800,
        "cost_low": 6.5,
        "cost_high": 6.5,
        "currency": "EUR",
    }
    return Prediction(**{**known, **fields})


@pytest.mark.parametrize(
    ("fields", "count", "text"),
    [
        ({}, 1, "about 2 h 10 min on one H100, 31 of 80 GiB, EUR 6.50"),
        (
            {"seconds_low": 5400, "seconds_high": 10800, "cost_low": 4.5, "cost_high": 9},
            1,
            "about 1 h 30 min to 3 h on one H100, 31 of 80 GiB, EUR 4.50 to 9.00",
        ),
        (
            {"mfu": 0.35, "mfu_assumed": True, "seconds_low": 40, "seconds_high": 40, "cost_high": None},
            8,
            "about 40 s on 8 H100, 31 of 80 GiB per device, at an assumed 35% of the device's peak",
        ),
        ({"device": "NVIDIA-X1", "seconds_low": 300_000, "seconds_high": 300_000, "currency": None}, 1,
         "about 3 d 11 h on one NVIDIA-X1, 31 of 80 GiB, 6.50"),
        (
            {"device": None, "seconds_low": None, "device_memory_available_bytes": None, "cost_low": None},
            2,
            "on 2 devices, 31 GiB per device",
        ),
        ({"device_memory_bytes": GIBIBYTE // 3, "cost_low": None, "seconds_low": 600, "seconds_high": 610}, 1,
         "about 10 min on one H100, 0.33 of 80 GiB"),
        ({"seconds_low": 0, "seconds_high": 1, "cost_low": None}, 1, "about 1 s on one H100, 31 of 80 GiB"),
    ],
)  # fmt: skip
def test_a_prediction_says_how_long_where_how_much_memory_and_what_it_costs(
    fields: dict[str, Any], count: int, text: str
) -> None:
    assert predicted_message(prediction(**fields), count) == text


def test_the_columns_have_the_prediction_and_then_what_it_took() -> None:
    assert columns(None) == {}
    assert columns(prediction()) == {"predicted": "2 h 10 min, 31 of 80 GiB, EUR 6.50", "took": None}
    measured = MeasuredTraining(device_memory_bytes=30 * GIBIBYTE, seconds=8400, cost=7.123)
    ended = prediction(measured=measured)
    assert columns(ended)["took"] == "2 h 20 min, 30 GiB, EUR 7.12"
    assert measured_message(ended) == (
        "; took 2 h 20 min, 30 GiB, EUR 7.12, predicted 2 h 10 min, 31 of 80 GiB, EUR 6.50"
    )
    assert measured_message(prediction(measured=MeasuredTraining())) == ""


@pytest.mark.parametrize(
    ("verdict", "warning"),
    [
        ("Fits", None),
        ("Unknown", None),
        ("Tight", "training may not fit: predicted peak of 76 of 80 GiB per device"),
        ("TooLarge", "training will probably not fit: predicted peak of 76 of 80 GiB per device"),
    ],
)
def test_what_may_not_fit_is_a_warning(verdict: str, warning: str | None) -> None:
    found = find_warning(prediction(verdict=verdict, device_memory_bytes=76 * GIBIBYTE))
    assert found == warning if warning is None else (found or "").startswith(warning)


def test_a_prediction_of_a_newer_trainer_stays_within_what_the_api_server_accepts() -> None:
    known = Predicted(
        device_memory_bytes=1,
        host_memory_bytes=1,
        state_bytes=1,
        flops=1,
        seconds_low=3600,
        seconds_high=3600,
    )
    newer = known.model_copy(update={"verdict": "Roomy", "chosen": ("x" * 300,) * 9})
    devices = TrainDevices(2, DeviceFacts(product=H100, peak_teraflops=989), 2.5, "EUR")
    status = predicted_status(newer, devices)
    assert (status.verdict, len(status.chosen), len(status.chosen[0])) == ("Unknown", 6, 256)
    assert (status.device, status.peak_teraflops, status.cost_low, status.currency) == (H100, 989, 5, "EUR")
    Prediction.model_validate(status.to_dict())
