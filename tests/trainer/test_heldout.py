# SPDX-License-Identifier: Apache-2.0
"""A run that is evaluated on another dataset: training leaves out what its rows repeat."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.evaluation import EvaluationChecks, PromptedModel
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.data.duplicates import Leaks, find_leaks
from finetune_trainer.rows import Row
from finetune_trainer.train.inputs import TrainingData
from tests.methods import method_of
from tests.trainer.workbench import PAIRS, ROWS, Workbench
from tools.models import tiny

LEAKED = ROWS[4:6]
"""Rows 5 and 6 of the training rows."""
OWN = (Row.pair("where is my parcel?", "shipping"), Row.pair("refund?", "billing"))


def find(
    tmp_path: Path, train: Sequence[Row], held_out: Sequence[Row], validation: Sequence[Row] = ()
) -> Leaks:
    paths = {}
    for split, rows in (("train", train), ("validation", validation), ("questions", held_out)):
        paths[split] = tmp_path / split
        paths[split].write_text("".join(f"{row.to_line()}\n" for row in rows))
    return find_leaks({"train": paths["train"], "validation": paths["validation"]}, paths["questions"])


def test_rows_with_the_input_of_a_held_out_row_are_found_whatever_their_answer(tmp_path: Path) -> None:
    other_answer = Row.pair(ROWS[1].messages[0].content.upper(), "nobody")

    leaks = find(tmp_path, ROWS[:6], (other_answer, ROWS[7]), validation=ROWS[6:8])

    assert leaks.rows == {"train": (2,), "validation": (2,)}
    assert (leaks.count, leaks.near, leaks.unsearched) == (2, 0, 0)


def test_nearly_the_same_rows_are_found_by_the_rule_within_a_dataset(tmp_path: Path) -> None:
    text = "my invoice of last month has the wrong address and i would like a corrected one by mail"
    long, near = Row.pair(text, "billing"), Row.pair(f"{text} please", "billing")

    assert find(tmp_path, (ROWS[0], near), (long,)).near == 1
    assert find(tmp_path, (ROWS[0], near), (long,)).rows["train"] == (2,)
    assert (
        find(tmp_path, (replace(near, messages=Row.pair(f"{text} please", "sales").messages),), (long,)).count
        == 0
    )


def test_rows_of_the_dataset_itself_are_no_leaks_of_each_other(tmp_path: Path) -> None:
    assert find(tmp_path, (ROWS[0], ROWS[0]), OWN, validation=(ROWS[0],)).count == 0
    assert find(tmp_path, (), ()).count == 0


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def test_preflight_leaves_them_out_and_says_so(bench: Workbench) -> None:
    dataset = bench.dataset(ROWS, ROWS[:2])
    found = bench.preflight(
        dataset=dataset,
        test_dataset=bench.dataset((*OWN, *LEAKED)),
        test_split="train",
        hyperparameters={"epochs": 1, "batch_size": 1},
    )

    assert (found.leaked_rows, found.train_rows) == (2, 10)
    assert found.hyperparameters.total_steps == 10
    (warning,) = [each for each in found.warnings if "evaluation.dataset" in each]
    assert warning.startswith(
        "2 rows of training and validation have the input of a row of evaluation.dataset and will not be used"
        " (train row 5, train row 6)"
    )


def test_a_long_row_is_named_by_its_number_although_rows_before_it_are_left_out(bench: Workbench) -> None:
    long, asked = Row.pair("why " * 40, "sales"), Row.pair("how " * 40, "sales")
    found = bench.preflight(
        dataset=bench.dataset((*ROWS, long), ROWS[:2]),
        test_dataset=bench.dataset((), (), (*LEAKED, asked)),
        hyperparameters={"max_sequence_length": 60, "on_long_rows": "Drop"},
    )

    dropped, truncated = [each for each in found.warnings if "more than 60 tokens" in each]
    assert "(train row 13)" in dropped
    assert truncated.startswith(
        "1 row of evaluation.dataset has more than 60 tokens, and evaluation truncates"
    )


@pytest.mark.parametrize("tokenized", [True, False], ids=["tokens", "rows"])
def test_training_leaves_out_the_same_rows(bench: Workbench, tokenized: bool) -> None:
    dataset, asked = bench.dataset(ROWS, ROWS[:2]), bench.dataset((), (), (*LEAKED, ROWS[0]))
    config = bench.train_config(dataset=dataset, rows=9).model_copy(update={"test_dataset": asked})
    if tokenized:
        bench.preflight(dataset=dataset, test_dataset=asked)

    data = load(bench, config)

    assert len(data.rows) == 9
    assert list(data.validation_numbers) == [2]
    whole = load(bench, config.model_copy(update={"test_dataset": None}), rows=12)
    assert [row.input_ids for row in data.rows] == [
        row.input_ids for number, row in enumerate(whole.rows, 1) if number not in (1, 5, 6)
    ]


def load(bench: Workbench, config: TrainConfig, rows: int = 9) -> TrainingData:
    steps = bench.train_config(dataset=config.dataset, rows=rows).hyperparameters.total_steps
    chosen = config.hyperparameters.model_copy(update={"total_steps": steps})
    config = config.model_copy(update={"hyperparameters": chosen})
    return TrainingData.load(config, chosen, bench.context())


def test_a_run_without_other_rows_is_refused(bench: Workbench) -> None:
    failure = bench.preflight_failure(
        dataset=bench.dataset(LEAKED), test_dataset=bench.dataset(ROWS), test_split="train"
    )

    assert failure.reason == FailureReason.NO_TRAINING_ROWS
    assert failure.message.startswith("each training row is the same as a row of evaluation.dataset")


def test_the_own_dataset_has_no_leaks_to_search(bench: Workbench) -> None:
    dataset = bench.dataset(ROWS, (), ROWS[:2])

    assert bench.preflight(dataset=dataset, test_dataset=dataset).leaked_rows == 0


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (OWN, {"slice_by": "language"}, "evaluation.sliceBy names language, which no measured row has"),
        (
            OWN,
            {"metrics": ("preference_accuracy",)},
            "evaluation.metrics: preference_accuracy needs rows with a",
        ),
        (OWN, {"metrics": ("json_fields",)}, "evaluation.metrics: json_fields needs an answer in JSON"),
    ],
)
def test_what_the_measured_rows_lack_is_refused_before_training(
    bench: Workbench, rows: Sequence[Row], settings: dict[str, Any], words: str
) -> None:
    failure = bench.preflight_failure(
        dataset=bench.dataset(ROWS), test_dataset=bench.dataset((), (), rows), **settings
    )

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert failure.message.startswith(words)


def test_pairs_of_another_dataset_are_measured_whatever_the_method(bench: Workbench) -> None:
    pairs = bench.dataset((), (), PAIRS[:4])

    found = bench.preflight(
        dataset=bench.dataset(ROWS[4:]), test_dataset=pairs, metrics=("preference_accuracy",)
    )
    assert found.leaked_rows == 0
    bench.preflight(
        dataset=bench.dataset(PAIRS), test_dataset=bench.dataset((), (), OWN), method=method_of("DPO")
    )


def test_prompted_shows_training_rows_and_the_check_knows_whose_secrets_to_look_for(bench: Workbench) -> None:
    base, dataset = bench.model(), bench.dataset()
    (checkpoint,) = bench.train(bench.train_config(base, dataset)).checkpoints[-1:]
    asked = bench.dataset((), (), OWN)
    settings: dict[str, Any] = {
        "metrics": ("exact_match",),
        "subjects": ("Tuned", "Prompted"),
        "prompted": PromptedModel(examples=1, seed=1),
        "checks": EvaluationChecks(no_change="Off"),
    }

    found = bench.evaluate(
        base, asked, checkpoint, shown_dataset=dataset, training_dataset=dataset, **settings
    )
    assert {score.subject for score in found.scores} == {"Tuned", "Prompted"}
    assert found.findings == ()

    unknown = bench.evaluate(base, asked, checkpoint, training_dataset=None, **settings)
    assert [each.subject for each in unknown.unmeasured] == ["Prompted"]
    (finding,) = [each for each in unknown.findings if each.check == "Memorization"]
    assert not finding.veto
    assert finding.message.startswith("answers were not compared with the secrets")


def test_the_leaks_are_kept_with_the_training_rows(bench: Workbench) -> None:
    dataset, asked = bench.dataset(), bench.dataset((), (), LEAKED)
    bench.preflight(tiny(), dataset, test_dataset=asked)
    name = f"leaks-1-test-{asked.removeprefix('sha256:')}"

    kept = bench.store.derived(ArtifactRef(kind="datasets", digest=dataset), name)

    assert kept is not None
    assert bench.preflight(tiny(), dataset, test_dataset=asked).leaked_rows == 2
