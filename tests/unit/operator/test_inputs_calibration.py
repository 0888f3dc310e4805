"""The utilization of the last runs of a profile."""

from typing import Any

from finetune_operator.reconcile.inputs.calibration import MAX_RUNS, Calibration


def run(number: int, mfu: float | None, profile: str | None = "a100") -> dict[str, Any]:
    """A run that was trained in minute `number`."""
    measured = {"measured": {"mfu": mfu} if mfu is not None else {"seconds": 5}}
    trained = {"type": "Trained", "lastTransitionTime": f"2026-11-27T08:{number:02}:00Z"}
    return {
        "metadata": {"uid": f"run-{number}"},
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
