# SPDX-License-Identifier: Apache-2.0
"""The utilization and memory of the last runs of a profile."""

from typing import Any

from finetune_operator.reconcile.inputs.device_use import (
    MAX_LINE_RUNS,
    MAX_RUNS,
    Calibration,
    LineOnProfile,
    SimilarRuns,
)


def run(
    number: int, mfu: float | None, profile: str | None = "a100", seconds: float = 3600
) -> dict[str, Any]:
    """A run that was trained in minute `number`, for some seconds."""
    measured = {"measured": {"mfu": mfu, "seconds": seconds} if mfu is not None else {"seconds": seconds}}
    trained = {"type": "Trained", "lastTransitionTime": f"2026-11-27T08:{number:02}:00Z"}
    return {
        "metadata": {"uid": f"run-{number}"},
        "spec": {"baseModel": {"uri": "hf://llama-8b"}, "method": {"type": "LoRA"}},
        "status": {"prediction": measured, "resolved": {"profile": profile}, "conditions": [trained]},
    }


def test_the_median_of_the_last_runs_is_known_whatever_the_order_in_which_they_are_listed() -> None:
    calibration = Calibration()
    assert calibration.mfu("a100") is None
    # The oldest ten reached 0.9 and are no longer counted.
    runs = [run(number, 0.9 if number < 10 else 0.3 + number / 1000) for number in range(10 + MAX_RUNS)]
    for job in sorted(runs, key=lambda each: each["metadata"]["uid"], reverse=True):
        calibration.note(job)
        calibration.note(job)
    assert calibration.mfu("a100") == 0.3 + 0.0195


def test_runs_without_a_measurement_and_of_other_profiles_do_not_count() -> None:
    calibration = Calibration()
    calibration.note({"metadata": {"uid": "new"}})
    calibration.note(run(1, None))
    calibration.note(run(2, 0.4, profile=None))
    calibration.note(run(3, 0.4, profile="l4"))
    assert (calibration.mfu("a100"), calibration.mfu("l4")) == (None, 0.4)


def test_a_run_is_predicted_by_similar_runs_that_were_not_short() -> None:
    calibration = Calibration()
    calibration.note(run(1, 0.4))
    for number in range(2, 12):
        small = run(number, 0.03)
        small["spec"]["baseModel"]["uri"] = "hf://tiny"
        calibration.note(small)
    calibration.note(run(12, 0.01, seconds=60))
    continued = run(13, 0.5)
    continued["spec"] = {"baseModel": {"champion": "line"}, "method": {"type": "LoRA"}}
    continued["status"]["resolved"]["baseModelUri"] = "hf://llama-8b"
    calibration.note(continued)
    assert calibration.mfu_of(SimilarRuns("a100", "hf://llama-8b", "LoRA")) == 0.45
    assert calibration.mfu_of(SimilarRuns("a100", "hf://tiny", "LoRA")) == 0.03
    assert calibration.mfu_of(SimilarRuns("a100", "hf://llama-8b", "Full")) is None
    assert calibration.mfu("a100") == 0.03


def trained(
    number: int, peak: int, device: int | None = 80, profile: str = "a100", namespace: str = "team"
) -> dict[str, Any]:
    """A run that was trained in minute `number` and used `peak` of `device` bytes."""
    job = run(number, None, profile)
    job["metadata"]["namespace"] = namespace
    job["spec"]["modelLine"] = "tickets"
    job["status"]["training"] = {"deviceMemoryBytes": peak}
    if device is not None:
        job["status"]["prediction"]["deviceMemoryAvailableBytes"] = device
    return job


def test_the_memory_of_the_last_runs_of_a_line_is_known_oldest_first_however_many_runs_others_have() -> None:
    calibration = Calibration()
    for number in (3, 1, 2):
        calibration.note(trained(number, 10 * number))
    for number in range(10, 11 + MAX_RUNS):
        calibration.note(trained(number, number, namespace="other"))
    assert calibration.peak_bytes(LineOnProfile("team", "tickets", "a100")) == [10, 20, 30]
    others = calibration.peak_bytes(LineOnProfile("other", "tickets", "a100"))
    assert others == [*range(11 + MAX_RUNS - MAX_LINE_RUNS, 11 + MAX_RUNS)]
    assert calibration.peak_bytes(LineOnProfile("team", "tickets", "l4")) == []


def test_lines_whose_runs_were_noted_first_are_forgotten_if_there_are_too_many() -> None:
    calibration = Calibration(max_lines=2)
    for number, profile in enumerate(("old", "a100", "l4")):
        calibration.note(trained(number, 10, profile=profile))
    known = [bool(calibration.peak_bytes(LineOnProfile("team", "tickets", each))) for each in ("old", "l4")]
    assert known == [False, True]
    assert calibration.memory_used_ratio("old") == 10 / 80


def test_the_used_share_of_memory_is_the_median_of_the_runs_whose_devices_are_known() -> None:
    calibration = Calibration()
    for number, peak in enumerate((8, 16, 80)):
        calibration.note(trained(number, peak))
    calibration.note(trained(4, 40, device=None, profile="unknown"))
    assert calibration.memory_used_ratio("a100") == 0.2
    assert calibration.memory_used_ratio("unknown") is None
