# SPDX-License-Identifier: Apache-2.0
"""The learning curve of a run: nested subsets, resumed, compared on the validation rows."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_trainer.contract.configs import PreflightConfig, TrainConfig
from finetune_trainer.contract.hyperparameters import RequestedHyperparameters
from finetune_trainer.contract.prediction import Prediction
from finetune_trainer.contract.results import OUTLOOKS, LearningCurvePoint, TrainResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.preflight.defaults import choose_hyperparameters
from finetune_trainer.preflight.estimate.prediction import add_curve_duration
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.statistics.bootstrap import MIN_UNITS
from finetune_trainer.statistics.estimate import ConfidenceInterval
from finetune_trainer.train.figures import RowLosses
from finetune_trainer.train.learning_curve import (
    FILE,
    MAX_PROBLEM_LENGTH,
    CurveRecord,
    MeasuredShare,
    assess_outlook,
    learning_curve,
)
from finetune_trainer.train.learning_curve_plan import subset_indices, subset_size
from finetune_trainer.train.states.restarts import MAX_STARTS_WITHOUT_PROGRESS, STARTS_FILE
from tests.methods import method_of, sampled
from tests.trainer import test_train_preference as preference
from tests.trainer.interruptions import Interruption
from tests.trainer.test_train_distributed import Pods, pods
from tests.trainer.test_train_resume import METHODS
from tests.trainer.workbench import ROWS, RUN, Sheet, Workbench, elsewhere
from tools.models import tiny

SHARES = (0.25, 0.5)
CHOSEN = choose_hyperparameters(
    RequestedHyperparameters(),
    method_of("LoRA"),
    train_rows=400,
    longest_row_tokens=64,
    max_sequence_length=64,
    hidden_size=640,
)
STEPS = {"main": 6, 0.25: 2, 0.5: 4}
"""Steps of two epochs of 12, 3 and 6 rows, 4 per step."""


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def curve_config(bench: Workbench, method: str = "LoRA", **settings: Any) -> TrainConfig:
    rows = preference.rows_for(method) if method in preference.METHODS else ROWS
    config = bench.train_config(
        dataset=bench.dataset(rows, rows[:5]), method=(METHODS | preference.METHODS)[method], **settings
    )
    return config.model_copy(update={"learning_curve": SHARES})


def folders(bench: Workbench) -> set[str]:
    return {path.name for path in (bench.root / "store" / "runs" / RUN).iterdir()}


def without_curve(result: TrainResult) -> TrainResult:
    return result.model_copy(update={"learning_curve": None})


def stopped(bench: Workbench, config: TrainConfig, step: int) -> None:
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset({step})))


@pytest.mark.parametrize("method", sampled(["LoRA", "Full", "DPO", "KTO", "ORPO"], "LoRA", "DPO"))
def test_each_share_has_a_point_and_the_run_is_as_without_a_curve(bench: Workbench, method: str) -> None:
    other = elsewhere(bench, "plain")
    config = curve_config(bench, method)
    plain = other.train(curve_config(other, method).model_copy(update={"learning_curve": ()}))

    result = bench.train(config)

    assert result.learning_curve is not None
    points = result.learning_curve.points
    assert [(point.share, point.rows) for point in points] == [(0.25, 3), (0.5, 6), (1, 12)]
    best = next(each for each in result.checkpoints if each.best)
    assert points[-1].loss == pytest.approx(best.validation_loss, rel=1e-4)
    assert [each.digest for each in result.checkpoints] == [each.digest for each in plain.checkpoints]
    assert result.train_loss == plain.train_loss
    assert all(point.gain is not None for point in points[1:])
    assert result.learning_curve.validation_rows == 5


def test_weights_of_the_subsets_are_no_checkpoints_and_are_deleted(bench: Workbench) -> None:
    result = bench.train(curve_config(bench))

    published = {path.name for path in (bench.root / "store" / "checkpoints").iterdir()}
    assert published == {each.digest.removeprefix("sha256:") for each in result.checkpoints}
    left = [
        path
        for share in SHARES
        for path in (bench.root / f"store/runs/{RUN}/learning-curve-{share}").rglob("*")
    ]
    assert not [path for path in left if path.suffix == ".safetensors"]


@pytest.mark.parametrize("step", sampled([3, 7, 8, 10, 11], 3, 8), ids="step {}".format)
def test_a_stopped_curve_continues_and_trains_no_subset_twice(bench: Workbench, step: int) -> None:
    """Steps up to 6 are those of the run, then two of the first subset, then four of the second."""
    other = elsewhere(bench, "straight")
    straight = other.train(curve_config(other))
    config = curve_config(bench)
    stopped(bench, config, step)
    is_published = step > STEPS["main"]
    record = CurveRecord.read(bench.store.run_folder(RUN, "train"), config)
    assert (record is not None) == is_published
    sheet = Sheet()

    result = bench.train(config, sheet)

    assert result.learning_curve is not None
    assert straight.learning_curve is not None
    assert result.learning_curve.points == straight.learning_curve.points
    assert without_curve(result).checkpoints == without_curve(straight).checkpoints
    assert min(progress.step for progress in sheet.seen) == step + 1
    assert sheet.seen[-1].step == sheet.seen[-1].total_steps == sum(STEPS.values())


def test_a_subset_that_diverges_has_a_point_without_a_loss(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.train import learning_curve as curve
    from finetune_trainer.train.learning_curve_plan import subset_data

    def poisoned(data: Any, hyperparameters: Any, share: float) -> Any:
        changed = hyperparameters.model_copy(update={"learning_rate": 1e30})
        vars(hyperparameters).update(vars(changed))
        return subset_data(data, hyperparameters, share)

    monkeypatch.setattr(curve, "subset_data", poisoned)

    result = bench.train(curve_config(bench))

    assert result.learning_curve is not None
    *subsets, whole = result.learning_curve.points
    assert all(point.loss is None for point in subsets)
    assert all(point.problem and len(point.problem) <= MAX_PROBLEM_LENGTH for point in subsets)
    assert whole.loss is not None
    assert result.learning_curve.outlook == "Unknown"


@pytest.mark.parametrize("step", [1, 0])
def test_a_subset_that_makes_no_progress_is_left_out(bench: Workbench, step: int) -> None:
    """Starts from another step than that of the saved state do not count: a lost process cost only time."""
    config = curve_config(bench)
    stopped(bench, config, STEPS["main"] + 1)
    folder = bench.store.run_folder(RUN, "learning-curve-0.25")
    starts = json.loads(folder.read(STARTS_FILE) or b"")
    assert starts["without_progress"] == 0, "a signal is not counted"
    exhausted = {"step": step, "without_progress": MAX_STARTS_WITHOUT_PROGRESS}
    folder.write(STARTS_FILE, json.dumps({**starts, **exhausted}).encode())

    result = bench.train(config)

    assert result.learning_curve is not None
    first, second, _ = result.learning_curve.points
    assert second.loss is not None
    if step == 0:
        assert first.loss is not None
        return
    assert first.loss is None
    assert f"started {MAX_STARTS_WITHOUT_PROGRESS} times from step 1" in (first.problem or "")
    assert second.gain is None, "there is no loss to compare with"


def test_without_validation_rows_the_run_is_refused(bench: Workbench) -> None:
    config = bench.train_config().model_copy(update={"learning_curve": SHARES})

    failure = bench.train_failure(config)

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert "learningCurve" in failure.message


def test_the_page_has_table_plot_and_sentence(bench: Workbench) -> None:
    result = bench.train(curve_config(bench))

    folder = bench.store.run_folder(RUN, "train").path
    page, report = (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text())
    assert result.learning_curve is not None
    assert OUTLOOKS[result.learning_curve.outlook] in page
    assert page.count('class="whisker"') == 3
    assert "all (this run)" in page
    assert [point["rows"] for point in report["learningCurve"]["points"]] == [3, 6, 12]
    assert len(json.loads((folder / FILE).read_text())["measured"]) == 3


@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_subsets_are_nested_and_seeded(rows: int) -> None:
    shares = (0.1, 0.25, 0.5, 0.9)
    subsets = [subset_indices(rows, share, seed=7) for share in shares]

    for share, subset in zip(shares, subsets, strict=True):
        assert len(set(subset)) == subset_size(rows, share)
        assert subset == sorted(subset)
    for smaller, larger in pairwise(subsets):
        assert set(smaller) <= set(larger)
    assert subsets == [subset_indices(rows, share, seed=7) for share in shares]
    assert rows < 1000 or subsets != [subset_indices(rows, share, seed=8) for share in shares]


def measured(share: float, rows: int, losses: np.ndarray[Any, Any]) -> MeasuredShare:
    return MeasuredShare(
        share=share, rows=rows, losses=RowLosses(sums=losses.tolist(), weights=[10] * len(losses))
    )


@pytest.mark.parametrize(
    ("fall", "rows", "expected"),
    [
        (0.2, 200, "LikelyToHelp"),
        (0.0, 200, "NotLikelyToHelp"),
        (-0.2, 200, "NotLikelyToHelp"),
        (0.02, 40, "Unknown"),
        (0.2, MIN_UNITS - 1, "Unknown"),
    ],
)
def test_the_sentence_is_what_the_interval_supports(fall: float, rows: int, expected: str) -> None:
    generator = np.random.default_rng(0)
    before = generator.gamma(4, 2, rows)
    after = before * (1 - fall) + generator.normal(0, 0.2 if rows > 100 else 1, rows)

    curve = learning_curve([measured(1, 800, after), measured(0.5, 400, before)])

    assert curve.outlook == expected
    assert [point.share for point in curve.points] == [0.5, 1]


def test_the_interval_of_the_fall_is_paired() -> None:
    """Rows differ much from each other, and the loss of each falls by the same share."""
    before = np.random.default_rng(0).gamma(0.5, 20, 100)

    curve = learning_curve([measured(0.5, 400, before), measured(1, 800, before * 0.9)])

    low, high = curve.points[1].gain_low, curve.points[1].gain_high
    assert low is not None
    assert high is not None
    assert 0 < low < curve.points[1].gain < high  # type: ignore[operator]
    alone = curve.points[1]
    assert high - low < ((alone.loss_high or 0) - (alone.loss_low or 0)) / 5


def test_losses_that_are_all_equal_have_no_interval() -> None:
    """How far those of other rows differ is unknown; a loss has no max."""
    curve = learning_curve([measured(0.5, 400, np.full(40, 7.0)), measured(1, 800, np.full(40, 6.0))])

    assert [(point.loss_low, point.gain_low) for point in curve.points] == [(None, None)] * 2
    assert curve.points[1].gain == 0.1
    assert curve.outlook == "Unknown"


def test_rows_of_one_group_count_as_one() -> None:
    """Ten alike rows per group say as much as one."""
    before = np.repeat(np.random.default_rng(0).gamma(4, 2, 25), 10)
    curve = [measured(0.5, 400, before), measured(1, 800, before * 0.9)]
    groups = [f"c{row // 10}" for row in range(250)]

    of_rows, of_groups = learning_curve(curve).points[1], learning_curve(curve, groups).points[1]
    few = learning_curve(curve, [f"c{row // 25}" for row in range(250)])

    assert of_groups.loss == of_rows.loss
    assert width_of(of_groups) > 2 * width_of(of_rows)
    assert [point.loss_low for point in few.points] == [None, None]
    assert few.outlook == "Unknown"


def width_of(point: LearningCurvePoint) -> float:
    assert point.loss_low is not None
    assert point.loss_high is not None
    return point.loss_high - point.loss_low


@pytest.mark.parametrize(
    ("column", "has_intervals"), [("customer", True), ("tenant", False)], ids=["kept", "not kept"]
)
def test_the_groups_of_validation_rows_are_those_of_a_kept_column(
    bench: Workbench, column: str, has_intervals: bool
) -> None:
    """A row that is too long is left out; the groups of the rows after it stay theirs."""
    long = Row.pair("order late? " * 60, "shipping")
    rows = [
        replace(row, columns=(("customer", f"c{number}"),))
        for number, row in enumerate((long, *(ROWS * 2)[:MIN_UNITS]))
    ]
    dataset = bench.dataset(ROWS, rows)
    config = bench.train_config(dataset=dataset, on_long_rows="Drop").model_copy(
        update={"learning_curve": (0.25,), "group_by": column}
    )

    result = bench.train(config)

    assert result.learning_curve is not None
    assert result.learning_curve.validation_rows == MIN_UNITS
    assert {point.loss_low is not None for point in result.learning_curve.points} == {has_intervals}


def test_a_smaller_growth_needs_a_smaller_fall() -> None:
    gain = ConfidenceInterval(0.005, 0.015)

    assert assess_outlook(gain, loss=1, growth=2) == "NotLikelyToHelp"
    assert assess_outlook(gain, loss=1, growth=1.25) == "LikelyToHelp"


def test_a_subset_that_would_exceed_the_time_of_the_run_is_left_out(bench: Workbench) -> None:
    config = curve_config(bench)
    stopped(bench, config, STEPS["main"] + 1)
    folder = bench.store.run_folder(RUN, "train")
    record = CurveRecord.read(folder, config)
    assert record is not None
    main = record.measured[0].model_copy(update={"seconds": 100})
    record.model_copy(update={"measured": [main]}).write(folder)

    result = bench.train(config.model_copy(update={"max_run_seconds": 140}))

    assert result.learning_curve is not None
    quarter, half, _ = result.learning_curve.points
    assert quarter.loss is not None
    assert half.loss is None
    assert half.problem is not None
    assert half.problem.startswith("training would take about 65 s more")


def predicted(low: float, high: float) -> Prediction:
    return Prediction(
        device_memory_bytes=1,
        host_memory_bytes=1,
        state_bytes=1,
        flops=1e12,
        seconds_low=low,
        seconds_high=high,
    )


def preflight_config(bench: Workbench, **settings: Any) -> PreflightConfig:
    return bench.preflight_config(tiny(), bench.dataset(), **settings)


def test_the_predicted_seconds_include_the_curve(bench: Workbench) -> None:
    config = preflight_config(bench, learning_curve=SHARES, max_run_seconds=1750)

    prediction = add_curve_duration(config, predicted(1000, 2000), 400, CHOSEN)

    assert prediction is not None
    assert (prediction.seconds_low, prediction.seconds_high) == (1750, 3500)
    assert prediction.flops == 1e12, "those of the run itself, from which its MFU is computed"
    assert add_curve_duration(config, None, 400, CHOSEN) is None


def test_a_curve_that_cannot_fit_the_time_of_the_run_is_refused_with_figures(bench: Workbench) -> None:
    config = preflight_config(bench, learning_curve=SHARES, max_run_seconds=1749)

    with pytest.raises(StageFailure) as caught:
        add_curve_duration(config, predicted(1000, 2000), 400, CHOSEN)

    assert caught.value.reason == FailureReason.INVALID_CONFIG
    assert caught.value.message.startswith(
        "learningCurve.shares: the run takes at least 1000 s, and the trainings on parts of its rows"
        " 750 s more, together 1750 s, but maxRunSeconds is 1749."
    )


def test_preflight_refuses_a_curve_without_validation_rows(bench: Workbench) -> None:
    failure = bench.preflight_failure(learning_curve=SHARES)

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert "learningCurve: its losses need validation rows" in failure.message


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_two_processes_have_the_curve_of_one(tmp_path: Path, method: str) -> None:
    """Full is sharded. The pods are killed once, in the training of the second subset."""
    settings: dict[str, Any] = {"dropout": 0, "method": method, "settings": {"save_every_steps": 1}}
    one = elsewhere(Workbench(tmp_path), "one")
    curve = {"learning_curve": SHARES}
    expected = one.train(Pods(one, **settings).alone().model_copy(update=curve)).learning_curve
    with pods(tmp_path, **settings) as two:
        config = two.config.model_copy(update=curve)
        saved = two.bench.root / f"store/runs/{RUN}/learning-curve-0.5/state/step-1"
        ends = [two.start(rank, Interruption("killed in a step", 10, saved), config) for rank in range(2)]
        assert [each.finish().code for each in ends] != [ExitCode.OK, ExitCode.OK]
        record = CurveRecord.read(two.bench.store.run_folder(RUN, "train"), config)
        assert record is not None
        assert record.has(0.25)
        assert not record.has(0.5)
        ended = [two.start(rank, config=config) for rank in range(2)]
        assert [each.finish().code for each in ended] == [ExitCode.OK, ExitCode.OK]
        found = two.result.learning_curve

    assert expected is not None
    assert found is not None
    for mine, theirs in zip(found.points, expected.points, strict=True):
        assert (mine.share, mine.rows) == (theirs.share, theirs.rows)
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert len(found.points) == 3
