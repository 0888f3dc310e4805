# SPDX-License-Identifier: Apache-2.0
"""The stage that computes metrics of the user, as its pod runs it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_trainer.contract.configs import ScoreConfig
from finetune_trainer.contract.evaluation import GateBound
from finetune_trainer.contract.own_metrics import CustomMetric
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.evaluate.custom import stage
from finetune_trainer.rows import Row
from finetune_trainer.runtime import termination
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.own_metrics import check_metric
from tests.trainer.processes import start
from tests.trainer.workbench import OWNER, RUN, TEAMS, Workbench

ROWS = tuple(Row.pair(f"order {number} is late", TEAMS[number % len(TEAMS)]) for number in range(40))
POLITE = (
    "def metric(row, answer):\n    return 0.5 * answer.startswith('Dear') + (row['completion'] in answer)\n"
)


def answers(wrong: int, greeting: str = "") -> list[str]:
    """An answer to each row, of which the first ones are wrong."""
    return [greeting + ("nobody" if index < wrong else row.output) for index, row in enumerate(ROWS)]


def score_config(
    root: Path,
    source: str,
    of_subjects: Mapping[str, Sequence[str]],
    gates: Sequence[GateBound] = (),
    *,
    function: str = "metric",
    rows: Sequence[Row] = ROWS,
) -> ScoreConfig:
    bench = Workbench(root)
    digest = bench.dataset(rows[:1], test=rows)
    predictions, metrics = root / "predictions", root / "metrics" / "polite"
    for folder in (predictions, metrics):
        folder.mkdir(parents=True)
    lines = [{"format": 1, "config": "0" * 64, "batchSize": 8}] + [
        {"subject": subject, "row": number, "text": text, "metrics": {}}
        for subject, texts in of_subjects.items()
        for number, text in enumerate(texts, 1)
    ]
    (predictions / "predictions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (metrics / "metric.py").write_text(source)
    return ScoreConfig(
        owner=OWNER,
        run=RUN,
        store=bench.store_config,
        predictions_path=str(predictions),
        dataset_path=str(root / "store" / "datasets" / digest.removeprefix("sha256:")),
        metrics=(CustomMetric(name="polite", path=str(metrics / "metric.py"), function=function),),
        gates=tuple(gates),
    )


def test_scores_are_means_with_intervals_and_gates_have_paired_evidence(tmp_path: Path) -> None:
    gates = (
        GateBound(metric="exact_match", min=0.5),
        GateBound(metric="custom/polite", min_gain=0.2, over="Base", confidence=0.95),
    )
    config = score_config(
        tmp_path, POLITE, {"Tuned": answers(4, "Dear reader, "), "Base": answers(20)}, gates
    )

    result = stage.run(config)

    tuned, base = result.scores
    assert (tuned.metric, tuned.subject, tuned.rows) == ("custom/polite", "Tuned", 40)
    assert tuned.value == pytest.approx(0.5 + 36 / 40)
    assert base.value == pytest.approx(20 / 40)
    assert tuned.low is not None
    assert tuned.high is not None
    assert tuned.low < tuned.value < tuned.high
    (evidence,) = result.evidence
    assert evidence.gate == 1
    assert evidence.gain == pytest.approx(0.5 + 16 / 40)
    assert evidence.gain_low is not None
    assert 0.5 < evidence.gain_low < 0.9
    assert result.sources[0].digest.startswith("sha256:")


def test_with_few_rows_there_are_scores_without_bounds(tmp_path: Path) -> None:
    gate = GateBound(metric="custom/polite", min=0.2, confidence=0.95)
    config = score_config(tmp_path, POLITE, {"Tuned": answers(0)[:5]}, [gate])

    result = stage.run(config)

    assert (result.scores[0].low, result.scores[0].rows) == (None, 5)
    assert result.evidence[0].undecided.startswith("bounds need at least 20 rows, and 5 were measured")


def test_an_error_names_the_row_and_the_line(tmp_path: Path) -> None:
    source = (
        "def metric(row, answer):\n"
        "    words = answer.split()\n"
        "    return len(words) / int('17' not in row['prompt'])\n"
    )
    config = score_config(tmp_path, source, {"Tuned": answers(0)})

    ended = start(config).finish()

    assert ended.code == ExitCode.BAD_DATA
    assert ended.result.reason == FailureReason.CUSTOM_METRIC_FAILED
    assert ended.result.message == (
        "evaluation.customMetrics: polite: row 18 of the test split, answer of Tuned: ZeroDivisionError:"
        " division by zero (line 3)"
    )


def test_a_function_with_a_socket_fails_the_stage_with_the_reason(tmp_path: Path) -> None:
    source = (
        "import urllib.request\n"
        "def metric(row, answer):\n"
        "    urllib.request.urlopen('http://127.0.0.1:9/judge')\n"
        "    return 1\n"
    )

    ended = start(score_config(tmp_path, source, {"Tuned": answers(0)})).finish()

    assert ended.code == ExitCode.BAD_DATA
    assert "row 1 of the test split, answer of Tuned" in ended.result.message
    assert "a custom metric has no network and cannot start programs" in ended.result.message


def test_a_source_that_changed_since_the_run_started_is_refused(tmp_path: Path) -> None:
    config = score_config(tmp_path, POLITE, {"Tuned": answers(0)})
    (metric,) = config.metrics
    known = metric.model_copy(update={"digest": check_metric(metric).digest})
    Path(metric.path).write_text(POLITE.replace("0.5", "5"))

    with pytest.raises(StageFailure) as caught:
        stage.run(config.model_copy(update={"metrics": (known,)}))

    assert "the source has changed since the run started" in caught.value.message


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    config = score_config(tmp_path, POLITE, {"Tuned": answers(0)}, function="rate")

    with pytest.raises(StageFailure) as caught:
        stage.run(config)
    Path(config.metrics[0].path).unlink()
    with pytest.raises(StageFailure) as missing:
        stage.run(config)

    assert caught.value.message.endswith(
        "the source in its ConfigMap: it has no function rate at its top level"
    )
    assert "it cannot be read: No such file or directory" in missing.value.message


def test_the_longest_result_fits_into_the_termination_message(tmp_path: Path) -> None:
    subjects = ("Tuned", "Base", "Prompted", "Live")
    gates = [
        GateBound(
            metric=f"custom/{'m' * 39}{index % 4}", min=0.123, min_gain=0.1, over="Live", confidence=0.95
        )
        for index in range(16)
    ]
    config = score_config(tmp_path, POLITE, {subject: answers(3) for subject in subjects}, gates)
    named = tuple(config.metrics[0].model_copy(update={"name": f"{'m' * 39}{index}"}) for index in range(4))

    scored = stage.run(config.model_copy(update={"metrics": named}))
    result = config.bind(StageResult(stage="score", run="u" * 36, outcome="Succeeded", score=scored))

    message = StageResult.parse(termination.fit_message(result))
    assert message is not None
    assert message.score is not None
    assert message.score.evidence == scored.evidence
    assert len(message.score.evidence) == 16
    assert {each.metric for each in message.score.scores if each.subject == "Tuned"} == {
        metric.metric for metric in named
    }


def test_values_of_0_and_1_have_the_bounds_of_proportions(tmp_path: Path) -> None:
    """All 40 right: the exact lower bound at 95 % is 0.05 ** (1 / 40), not 1."""
    gate = GateBound(metric="custom/polite", min=0.95, min_gain=0, over="Base", confidence=0.95)
    right = "def metric(row, answer):\n    return row['completion'] in answer\n"
    config = score_config(tmp_path, right, {"Tuned": answers(wrong=0), "Base": answers(wrong=0)}, [gate])
    (evidence,) = stage.run(config).evidence
    assert evidence.low == pytest.approx(0.05 ** (1 / 40), abs=1e-6)
    assert evidence.gain_low is not None
    assert evidence.gain_low < 0


def test_values_that_are_all_equal_have_no_bounds(tmp_path: Path) -> None:
    """The function may return any number for another row."""
    gate = GateBound(metric="custom/polite", min=0.6, confidence=0.99)
    constant = "def metric(row, answer):\n    return 0.7\n"

    result = stage.run(score_config(tmp_path, constant, {"Tuned": answers(0)}, [gate]))

    assert result.scores[0].value == pytest.approx(0.7)
    assert result.scores[0].low is None
    assert result.evidence[0].undecided.startswith("all 40 rows have the same value")


RIGHT = "def metric(row, answer):\n    return row['completion'] in answer\n"


def by_customer(root: Path, rows_of_each: int, source: str = RIGHT) -> ScoreConfig:
    """Rows of customers, of whom the first ones have wrong answers only; grouped by customer."""
    rows = [
        replace(row, columns=(("customer", f"c{index // rows_of_each}"),)) for index, row in enumerate(ROWS)
    ]
    gate = GateBound(metric="custom/polite", min=0.5, min_gain=0, over="Base", confidence=0.95)
    config = score_config(root, source, {"Tuned": answers(8), "Base": answers(20)}, [gate], rows=rows)
    return config.model_copy(update={"group_by": "customer"})


@pytest.mark.parametrize("source", [RIGHT, POLITE], ids=["shares", "numbers"])
def test_rows_of_one_group_count_as_one(tmp_path: Path, source: str) -> None:
    grouped = by_customer(tmp_path, 2, source)
    (of_groups,) = stage.run(grouped).evidence
    (of_rows,) = stage.run(grouped.model_copy(update={"group_by": None})).evidence

    for bound in ("low", "gain_low"):
        assert getattr(of_groups, bound) < getattr(of_rows, bound) - 0.02
    assert (of_groups.value, of_groups.gain) == (of_rows.value, of_rows.gain)


def test_few_groups_give_no_bounds(tmp_path: Path) -> None:
    result = stage.run(by_customer(tmp_path, 4))

    assert {score.low for score in result.scores} == {None}
    assert result.evidence[0].undecided.startswith(
        "bounds need at least 20 groups of customer, and 10 were measured"
    )


def test_groups_that_the_dataset_does_not_keep_give_no_bounds(tmp_path: Path) -> None:
    config = by_customer(tmp_path, 2).model_copy(update={"group_by": "tenant"})

    (evidence,) = stage.run(config).evidence

    assert "add tenant to spec.keepColumns of the Dataset" in evidence.undecided
