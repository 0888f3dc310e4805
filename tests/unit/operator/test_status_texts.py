# SPDX-License-Identifier: Apache-2.0
"""Times, progress and texts of a status."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_operator.api.dataset import DatasetSpec
from finetune_operator.api.evaluation import EvaluationSettings, EvaluationStatus, Gate, Score
from finetune_operator.api.finetune_job_status import ProgressStatus
from finetune_operator.api.meta import ReservedValues, find_unimplemented
from finetune_operator.api.stage_status import Cost, StageUsage
from finetune_operator.observe.device_usage import finish_stage, stage_usage
from finetune_operator.observe.pod_status import Price, add_cost
from finetune_operator.plan import Manifest
from finetune_operator.status.progress import complete_stage, display, duration_text, merge_report, score_text
from finetune_trainer.contract.results import Progress

START = datetime(2030, 1, 2, 3, 0, 0, tzinfo=UTC)


def second(count: int) -> datetime:
    return START + timedelta(seconds=count)


def job(created: int = 0, devices: int = 2) -> Manifest:
    return {
        "metadata": {
            "creationTimestamp": second(created).isoformat(),
            "labels": {"finetune.dev/devices": str(devices)},
        }
    }


def pod(started: int, ended: int | None = None) -> Manifest:
    metadata = {"uid": f"pod-{started}", "creationTimestamp": second(started).isoformat()}
    if ended is None:
        state: Manifest = {"running": {"startedAt": second(started).isoformat()}}
    else:
        times = {"startedAt": second(started).isoformat(), "finishedAt": second(ended).isoformat()}
        state = {"terminated": times}
    return {"metadata": metadata, "status": {"containerStatuses": [{"name": "trainer", "state": state}]}}


def test_queued_is_until_the_first_container_starts_and_seconds_count_every_pod() -> None:
    usage = stage_usage(None, "train", job(), [pod(5, 25), pod(40, 60)], second(70))
    assert usage is not None
    assert (usage.queued_seconds, usage.seconds, usage.device_seconds) == (5, 40, 80)


def test_looking_twice_counts_once() -> None:
    usage: StageUsage | None = None
    for now in (10, 20, 20, 35):
        usage = stage_usage(usage, "train", job(), [pod(5)], second(now))
    usage = stage_usage(usage, "train", job(), [pod(5, 45)], second(50))
    assert usage == stage_usage(usage, "train", job(), [pod(5, 45)], second(99))
    assert usage is not None
    assert (usage.queued_seconds, usage.seconds) == (5, 40)


def test_what_was_counted_of_a_pod_stays_when_the_pod_is_gone() -> None:
    usage = stage_usage(None, "train", job(), [pod(5)], second(25))
    usage = stage_usage(usage, "train", job(created=100), [pod(110, 120)], second(120))
    assert usage is not None
    assert (usage.queued_seconds, usage.seconds, usage.device_seconds) == (15, 30, 60)


def test_a_stage_whose_container_never_started_has_used_nothing() -> None:
    waiting = {"waiting": {"reason": "x"}}
    pending: Manifest = {"status": {"containerStatuses": [{"name": "trainer", "state": waiting}]}}
    assert stage_usage(None, "train", job(), [pending, {}], second(70)) is None
    assert finish_stage(None, "train").seconds == 0


def test_cost_is_added_as_time_passes_and_only_in_one_currency() -> None:
    euro, dollar = Price(per_device_hour=2, currency="EUR"), Price(per_device_hour=9, currency="USD")
    cost = add_cost(None, 1800, euro)
    assert cost == Cost(device_seconds=1800, amount=1, currency="EUR")
    assert add_cost(cost, 1800, euro) == Cost(device_seconds=3600, amount=2, currency="EUR")
    assert add_cost(cost, 60, dollar) == Cost(device_seconds=1860, amount=1, currency="EUR")
    assert add_cost(None, 60, Price()) == Cost(device_seconds=60)
    assert add_cost(None, 0, euro) is None


@pytest.mark.parametrize("unpriced", [Price(), Price(currency="USD")])
def test_the_currency_of_the_cost_is_that_of_the_first_price(unpriced: Price) -> None:
    cost = add_cost(add_cost(None, 60, unpriced), 1800, Price(per_device_hour=2, currency="EUR"))
    assert cost == Cost(device_seconds=1860, amount=1, currency="EUR")


def test_a_report_of_a_resumed_pod_does_not_move_progress_back() -> None:
    first = merge_report(None, "train", Progress(step=30, total_steps=40, loss=0.123456789, eta_seconds=12.6))
    assert (first.percent, first.loss, first.eta_seconds) == (75, 0.12346, 13)
    assert merge_report(first, "train", Progress(step=20, total_steps=40)) == first
    later = merge_report(first, "evaluate", Progress(step=6, total_steps=24))
    assert (later.stage, later.percent, later.loss) == ("evaluate", 25, 0.12346)


def test_progress_has_the_validation_loss_and_the_memory_of_the_device() -> None:
    report = Progress(step=1, total_steps=4, validation_loss=0.123456789, device_memory_bytes=1 << 30)
    shown = merge_report(None, "train", report)
    assert (shown.validation_loss, shown.device_memory_bytes) == (0.12346, 1 << 30)


def test_rewards_are_shown_as_they_are_reported_and_only_of_methods_that_have_them() -> None:
    report = Progress(step=30, total_steps=40, reward_accuracy=0.875, reward_margin=1.23456789)

    shown = merge_report(None, "train", report)

    assert (shown.reward_accuracy, shown.reward_margin) == (0.875, 1.2346)
    assert "rewardMargin" not in merge_report(None, "train", Progress(step=1, total_steps=2)).to_dict()


def test_a_stage_that_has_ended_is_at_a_hundred_percent() -> None:
    ended = complete_stage(
        ProgressStatus(stage="train", step=38, total_steps=40, loss=0.1, eta_seconds=4), "train", 40
    )
    assert (ended.step, ended.percent, ended.loss, ended.eta_seconds) == (40, 100, 0.1, None)


def test_a_run_that_stopped_early_has_made_all_the_steps_that_it_was_to_make() -> None:
    ended = complete_stage(ProgressStatus(stage="train", step=30, total_steps=40, percent=75), "train", 30)
    assert (ended.step, ended.total_steps, ended.percent) == (30, 30, 100)


def test_columns_show_stage_loss_score_and_time_left() -> None:
    progress = ProgressStatus(stage="train", step=18, total_steps=40, percent=45, loss=0.25, eta_seconds=3700)
    shown = display(progress, None, state="Running")
    assert (shown.progress, shown.loss, shown.eta) == ("train 45% (18/40)", "0.250", "1h01m")
    assert display(progress, None, state="Resting").eta is None
    score = Score(metric="exact_match", subject="Tuned", value=0.953, rows=24)
    evaluation = EvaluationStatus(checkpoint="c", verdict="Passed", scores=(score,))
    assert score_text(evaluation) == "exact_match 0.95"
    assert display(progress, evaluation, state="Done").progress == "100%"
    assert display(None, evaluation, state="Resting").score == "exact_match 0.95"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59, "59s"), (80, "1m20s"), (7500, "2h05m")])
def test_durations_read_as_people_write_them(seconds: int, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("spec", "messages"),
    [
        (DatasetSpec.model_validate({"sources": [{"uri": "pvc://rows/a.csv", "format": "CSV"}]}), ()),
    ],
)
def test_reserved_fields_are_found_wherever_they_are(spec: Any, messages: tuple[str, ...]) -> None:
    assert find_unimplemented(spec) == messages


def test_reserved_values_are_found_in_lists_and_within_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for model, field in ((EvaluationSettings, "compare"), (Gate, "over")):
        monkeypatch.setattr(model.model_fields[field], "metadata", [ReservedValues.of("Prompted", "Live")])
    spec = EvaluationSettings.model_validate(
        {
            "compare": ["Base", "Prompted"],
            "gates": [{"metric": "exact_match", "minGain": 0.1, "over": "Live"}],
        }
    )

    assert find_unimplemented(spec) == (
        "spec.compare: Prompted is not implemented in this release; use Base",
        "spec.gates[0].over: Live is not implemented in this release; use Base",
    )
