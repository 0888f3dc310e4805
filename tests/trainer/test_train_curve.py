# SPDX-License-Identifier: Apache-2.0
"""The loss curve of a run: bounded, even, and exact across restarts."""

import json
import math
from pathlib import Path

import pytest

from finetune_trainer.contract.results import CheckpointResult, RepeatedTraining, StageResult, TrainResult
from finetune_trainer.runtime import termination
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.train.states.ledger import MAX_POINTS, MAX_SHOWN_POINTS, LossCurve
from tests.methods import method_of
from tests.trainer.workbench import PAIRS, ROWS, RUN, Sheet, Workbench, elsewhere


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def curve_of(steps: int, epoch: int = 10) -> LossCurve:
    """A curve with losses of 1/step per token, and validation losses of 2/step after each epoch."""
    curve = LossCurve()
    for step in range(1, steps + 1):
        curve.add_step(loss_sum=7 / step, label_tokens=7)
        if step % epoch == 0:
            curve.add_validation(step, 2 / step)
    return curve


@pytest.mark.parametrize("steps", [1, 99, 100, 101, 200, 201, 5000])
def test_a_curve_is_bounded_and_covers_every_step_once(steps: int) -> None:
    curve = curve_of(steps)

    assert len(curve.points) <= MAX_POINTS
    assert sum(point.steps for point in curve.points) == steps == curve.points[-1].step
    widths = {point.steps for point in curve.points[:-1]}
    assert widths <= {curve.steps_per_point}, "all points except the last cover the same number of steps"
    assert steps < MAX_POINTS or len(curve.points) > MAX_POINTS / 2, "and the space is used"
    assert sum(point.label_tokens for point in curve.points) == 7 * steps
    assert math.isclose(
        sum(point.loss_sum for point in curve.points), sum(7 / n for n in range(1, steps + 1))
    )


def test_a_point_is_the_mean_of_its_labelled_tokens() -> None:
    curve = LossCurve()
    for step in range(MAX_POINTS + 1):
        curve.add_step(loss_sum=3.0 if step % 2 else 1.0, label_tokens=3 if step % 2 else 1)

    assert curve.points[0].steps == 2
    assert curve.points[0].loss == 1.0
    assert curve.points[0].step == 2


def test_validation_is_bounded_and_keeps_the_lowest() -> None:
    curve = LossCurve()
    losses = [2.0] * 1000
    losses[617] = 0.5
    for index, loss in enumerate(losses):
        curve.add_validation(10 * (index + 1), loss)

    assert MAX_POINTS / 2 < len(curve.validation) <= MAX_POINTS
    assert sum(each.epochs for each in curve.validation) == 1000
    assert (6180, 0.5) in {(each.step, each.loss) for each in curve.validation}


def test_a_curve_that_was_written_and_read_at_any_moment_is_equal_to_the_bit() -> None:
    losses = [(9 * math.sin(step) ** 2, 1 + step % 97) for step in range(450)]
    straight, interrupted = LossCurve(), LossCurve()
    for loss_sum, label_tokens in losses:
        straight.add_step(loss_sum, label_tokens)
        interrupted = LossCurve.model_validate_json(interrupted.model_dump_json())
        interrupted.add_step(loss_sum, label_tokens)

    assert interrupted == straight


@pytest.mark.parametrize("steps", [1, 31, 33, 100, 5000])
def test_what_is_shown_is_smaller_and_covers_the_whole_run(steps: int) -> None:
    shown = curve_of(steps).shown()

    assert len(shown) <= MAX_SHOWN_POINTS
    assert len(shown) > MAX_SHOWN_POINTS / 2 or len(shown) == steps
    assert [step for step, _, _ in shown] == sorted({step for step, _, _ in shown})
    assert shown[-1][0] == steps


def test_a_validation_loss_is_shown_beside_the_steps_it_followed() -> None:
    shown = {step: validation for step, _, validation in curve_of(30).shown()}

    assert {step: value for step, value in shown.items() if value is not None} == {
        10: 0.2,
        20: 0.1,
        30: 0.06667,
    }


def test_an_interrupted_run_has_the_same_curve_and_report(bench: Workbench) -> None:
    other = elsewhere(bench, "uninterrupted")
    reports, results = [], []
    for store, stops in ((other, ()), (bench, (1, 2, 4))):
        config = store.train_config(dataset=store.dataset(ROWS, ROWS[:5]), keep=1)
        for step in stops:
            with pytest.raises(Preempted):
                store.train(config, Sheet(stop_at=frozenset({step})))
        results.append(store.train(config))
        reports.append(json.loads((store.store.run_folder(RUN, "train").path / "report.json").read_text()))

    straight, interrupted = reports
    assert results[0].loss_curve == results[1].loss_curve
    assert [step for step, _, _ in results[0].loss_curve] == list(range(1, 7))
    assert [step for step, _, validation in results[0].loss_curve if validation is not None] == [3, 6]
    for name in ("training", "validation", "checkpoints", "trainLoss", "validationLoss", "tokens"):
        assert straight[name] == interrupted[name], name
    assert [each["step"] for each in straight["validation"]] == [3, 6]
    assert interrupted["restarts"] == 3


def test_the_report_is_a_page_that_needs_nothing_else(bench: Workbench) -> None:
    result = bench.train_whole(bench.train_config(dataset=bench.dataset(ROWS, ROWS[:5])))

    assert result.report_uri == f"pvc://artifacts/runs/{RUN}/train/report.html"
    page = (bench.store.run_folder(RUN, "train").path / "report.html").read_text()
    assert page.count("<polyline") == 2
    assert page.count('<circle class="dot train"') == 6
    assert page.count('<circle class="dot validation"') == 2
    assert "<script" not in page
    assert "://" not in page
    for checkpoint in result.checkpoints:
        assert checkpoint.digest[:19] in page


def test_a_report_without_validation_has_one_line(bench: Workbench) -> None:
    bench.train(bench.train_config())

    page = (bench.store.run_folder(RUN, "train").path / "report.html").read_text()
    assert page.count("<polyline") == 1
    assert "no validation rows" in page


@pytest.mark.parametrize(("method", "unit"), [("LoRA", "nats per token"), ("DPO", "loss per row")])
def test_the_axis_says_what_the_loss_is_of(bench: Workbench, method: str, unit: str) -> None:
    rows = PAIRS if method == "DPO" else ROWS
    bench.train(bench.train_config(dataset=bench.dataset(rows), method=method_of(method), rows=len(rows)))

    page = (bench.store.run_folder(RUN, "train").path / "report.html").read_text()
    assert f">{unit}</text>" in page


def long_result(points: int, checkpoints: int = 10, *, probes: bool = False) -> StageResult:
    """A result in which every number has its maximum length."""
    train = TrainResult(
        steps=100_000_000,
        train_loss=0.12345678901234567,
        validation_loss=0.12345678901234567,
        tokens=10**13,
        tokens_per_second=123456.7,
        device_memory_bytes=10**12,
        restarts=123,
        lost_device_seconds=123456.7,
        repeats=(RepeatedTraining(after=1893553200.123456, before=1893553200.123456, device_seconds=1.5),)
        * 8,
        loss_curve=tuple((99_999_900 + index, 0.00012345, 0.00012345) for index in range(points)),
        report_uri=f"s3://{'b' * 63}/artifacts/runs/{'u' * 36}/train/report.html",
        stopped_early=True,
        overfit=True,
        max_batch_rows=2048,
        checkpoints=tuple(
            CheckpointResult(
                digest=f"sha256:{index:064x}",
                type="Adapter",
                step=99_999_990 + index,
                epoch=999.1234567890123,
                train_loss=0.12345678901234567,
                validation_loss=0.12345678901234567,
                best=index == 8,
                final=index == 9,
                probe=f"sha256:{index:064x}" if probes else None,
            )
            for index in range(checkpoints)
        ),
    )
    return StageResult(stage="train", run="u" * 36, outcome="Succeeded", train=train)


def test_ten_checkpoints_fit_into_a_termination_message_and_the_curve_goes_first() -> None:
    text = termination.fit_message(long_result(points=32))

    read = StageResult.parse(text)
    assert len(text.encode()) <= 3500
    assert read is not None
    assert read.train is not None
    assert read.train == long_result(points=0).train


def test_probes_of_kept_checkpoints_go_before_what_the_operator_needs() -> None:
    text = termination.fit_message(long_result(points=32, probes=True))

    read = StageResult.parse(text)
    assert len(text.encode()) <= 3500
    assert read is not None
    assert read.train is not None
    kept = read.train.checkpoints
    assert [each.probe is not None for each in kept] == [each.best or each.final for each in kept]
    assert len(kept) == 10


def test_a_curve_beside_two_checkpoints_fits() -> None:
    whole = long_result(points=32, checkpoints=2)

    assert StageResult.parse(termination.fit_message(whole)) == whole
