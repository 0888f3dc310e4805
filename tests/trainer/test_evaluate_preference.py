# SPDX-License-Identifier: Apache-2.0
"""Evaluation on preference data: pairs of answers, and answers with a label."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.method import LoRA, Preference
from finetune_trainer.contract.results import CheckpointResult, EvaluateResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import StageFailure
from tests.methods import method_of
from tests.trainer.workbench import JUDGED, PAIRS, ROWS, Workbench

ADAPTER = LoRA(r=8, alpha=16)
ALL: dict[str, Any] = {"metrics": ("preference_accuracy", "loss")}


class Trainings:
    """Checkpoints in one store; equal ones are trained once."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.base: Digest = bench.model()
        self._checkpoints: dict[tuple[str, Digest], CheckpointResult] = {}

    def evaluate(
        self, method: str, train: tuple[Row, ...], test: tuple[Row, ...], **settings: Any
    ) -> EvaluateResult:
        """Evaluate a model trained on `train` with the rows `test`."""
        checkpoint = self._checkpoint(method, self.bench.dataset(train))
        return self.bench.evaluate(self.base, self.bench.dataset(test=test), checkpoint, **settings)

    def _checkpoint(self, method: str, dataset: Digest) -> CheckpointResult:
        key = (method, dataset)
        if key not in self._checkpoints:
            config = self.bench.train_config(
                self.base,
                dataset,
                method=method_of(
                    method,
                    lora=ADAPTER,
                    preference=Preference(desirable_weight=1, undesirable_weight=1),
                ),
                epochs=10,
                learning_rate=1e-2,
                save_every_steps=1000,
            )
            run = f"run-{len(self._checkpoints)}"
            (self._checkpoints[key],) = self.bench.train(config.model_copy(update={"run": run})).checkpoints
        return self._checkpoints[key]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings(Workbench(tmp_path_factory.mktemp("preference")))


def value(result: EvaluateResult, metric: str, subject: str) -> float:
    (score,) = (score for score in result.scores if (score.metric, score.subject) == (metric, subject))
    return score.value


@pytest.mark.parametrize("method", ["DPO", "ORPO"])
def test_a_model_that_learned_which_answer_is_wanted_prefers_it_more_often_than_its_base(
    trainings: Trainings, method: str
) -> None:
    result = trainings.evaluate(method, PAIRS, PAIRS[:6], **ALL)

    assert value(result, "preference_accuracy", "Tuned") == 1
    assert value(result, "preference_accuracy", "Base") < 1
    assert {score.rows for score in result.scores} == {6}


def test_the_preference_is_by_the_mean_of_the_tokens_and_not_by_their_sum(trainings: Trainings) -> None:
    """The sum would always favour one word over the ten words of a good answer."""
    long = tuple(
        replace(row, messages=(*row.input, replace(row.messages[-1], content=f"{row.output} " * 10)))
        for row in PAIRS
    )

    result = trainings.evaluate("ORPO", long, long[:6], **ALL)

    assert value(result, "preference_accuracy", "Tuned") == 1


def test_reversed_pairs_score_zero(trainings: Trainings) -> None:
    turned = tuple(
        replace(
            row,
            messages=(*row.input, replace(row.messages[-1], content=row.rejected or "")),
            rejected=row.output,
        )
        for row in PAIRS
    )

    result = trainings.evaluate("DPO", PAIRS, turned[:6], metrics=("preference_accuracy",))

    assert value(result, "preference_accuracy", "Tuned") == 0


def test_only_desirable_answers_are_correct_ones(trainings: Trainings) -> None:
    result = trainings.evaluate("KTO", JUDGED, JUDGED[:8], metrics=("exact_match", "loss"))

    assert {score.rows for score in result.scores} == {4}
    assert value(result, "loss", "Tuned") < value(result, "loss", "Base")


def test_the_loss_of_a_pair_is_that_of_its_chosen_answer(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    base = bench.model()
    pairs, plain = bench.dataset(PAIRS, (), PAIRS[:6]), bench.dataset(ROWS, (), ROWS[:6])
    (checkpoint,) = bench.train(bench.train_config(base, plain)).checkpoints

    of_pairs = bench.evaluate(base, pairs, checkpoint, metrics=("loss",))
    of_rows = bench.evaluate(base, plain, checkpoint, metrics=("loss",))

    assert value(of_pairs, "loss", "Tuned") == value(of_rows, "loss", "Tuned")


@pytest.mark.parametrize(
    ("method", "train", "test", "words"),
    [
        (
            "KTO",
            JUDGED,
            JUDGED,
            "evaluation.metrics: preference_accuracy needs rows with a chosen and a rejected",
        ),
        (
            "KTO",
            JUDGED,
            tuple(row for row in JUDGED if not row.label),
            "the dataset has no test rows with the label true",
        ),
    ],
)
def test_rows_that_say_nothing_about_the_metric_are_refused(
    trainings: Trainings, method: str, train: tuple[Row, ...], test: tuple[Row, ...], words: str
) -> None:
    with pytest.raises(StageFailure) as caught:
        trainings.evaluate(method, train, test, **ALL)

    assert caught.value.reason == FailureReason.INVALID_CONFIG
    assert caught.value.message.startswith(words)
