# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a checkpoint and its base model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.evaluation import GateBound
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.metrics import METRICS
from finetune_trainer.contract.results import CheckpointResult, EvaluateResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.evaluate import stage
from finetune_trainer.evaluate.examples import encode_examples
from finetune_trainer.evaluate.metrics import f1_token
from finetune_trainer.evaluate.metrics.registry import MEASURES
from finetune_trainer.evaluate.report import read_learning_curve
from finetune_trainer.rows import Row
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.statistics.estimate import one_sided
from finetune_trainer.statistics.proportions import Proportion
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.tokens.reasoning import AnswerReader
from tests.trainer.workbench import ROWS, Sheet, Workbench, tiny_tokenizer
from tools.models import tiny

METHODS = {
    "LoRA": Method(lora=LoRA(r=8, alpha=16, dropout=0)),
    "rsLoRA": Method(lora=LoRA(r=8, alpha=6, dropout=0, rslora=True)),
    "DoRA": Method(lora=LoRA(r=8, alpha=16, dropout=0, dora=True)),
    "Full": Method(type="Full"),
}


class Trained:
    """A checkpoint that has memorized `ROWS`, and what its evaluation needs."""

    def __init__(self, bench: Workbench, method: str) -> None:
        self.bench = bench
        self.base: Digest = bench.model()
        self.dataset = bench.dataset(ROWS, (), (*ROWS[:5], Row.pair("order late?", "nobody knows")))
        config = bench.train_config(
            self.base,
            self.dataset,
            method=METHODS[method],
            epochs=25,
            learning_rate=1e-2,
            batch_size=4,
            save_every_steps=1000,
        )
        (self.checkpoint,) = bench.train(config).checkpoints

    def evaluate(self, dataset: Digest | None = None, **settings: Any) -> EvaluateResult:
        return self.bench.evaluate(self.base, dataset or self.dataset, self.checkpoint, **settings)


@pytest.fixture(scope="module", params=METHODS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(Workbench(tmp_path_factory.mktemp("evaluate")), request.param)


def values(result: EvaluateResult) -> dict[tuple[str, str], float]:
    return {(score.subject, score.metric): score.value for score in result.scores}


def test_what_was_learned_by_heart_is_right_and_the_base_model_knows_nothing(trained: Trained) -> None:
    result = trained.evaluate()

    assert result.checkpoint == trained.checkpoint.digest
    assert result.split == "test"
    assert {score.rows for score in result.scores} == {6}
    scores = values(result)
    assert scores["Tuned", "exact_match"] == pytest.approx(5 / 6)
    assert scores["Base", "exact_match"] == 0
    assert scores["Tuned", "loss"] < scores["Base", "loss"]


def test_scores_are_the_same_each_time_and_in_batches_of_any_size(trained: Trained) -> None:
    first = trained.evaluate(batch_size=4)

    assert trained.evaluate(batch_size=4).scores == first.scores
    assert values(trained.evaluate(batch_size=1)) == pytest.approx(values(first), rel=1e-5)


def test_a_gate_has_the_bounds_that_the_rows_support(trained: Trained) -> None:
    gate = GateBound(metric="exact_match", min=0.9, confidence=0.95)

    (evidence,) = trained.evaluate(gates=(gate,)).evidence

    bounds = one_sided(Proportion(5, 6), 0.95)
    assert (evidence.low, evidence.high) == pytest.approx((bounds.low, bounds.high), abs=1e-5)
    assert evidence.more_rows is not None


def test_a_gate_has_no_bounds_where_the_groups_of_rows_are_not_kept(trained: Trained) -> None:
    gate = GateBound(metric="exact_match", min=0.9, confidence=0.95)

    result = trained.evaluate(gates=(gate,), group_by="customer")

    assert "add customer to spec.keepColumns" in result.evidence[0].undecided
    assert {score.low for score in result.scores} == {None}


def test_the_words_of_a_wrong_answer_count_for_f1_token(trained: Trained) -> None:
    scores = values(trained.evaluate(metrics=("exact_match", "f1_token")))

    assert scores["Tuned", "f1_token"] == pytest.approx(5 / 6, abs=1e-6)
    assert scores["Base", "f1_token"] == 0


@pytest.mark.parametrize(
    ("answer", "accepted", "value"),
    [
        ("Billing.", {"billing"}, 1),
        ("the order is late", {"order late"}, 0.8),
        ("one two three four five", {"six", "five", "four five six"}, 0.5),
        ("nothing of it", {"order late"}, 0),
        ("", {"order late"}, 0),
        ("a call without text has no right answer", frozenset(), 0),
    ],
)
def test_f1_token_is_that_of_squad(answer: str, accepted: frozenset[str], value: float) -> None:
    assert f1_token.value(answer, accepted) == value


def test_every_metric_of_the_contract_can_be_measured() -> None:
    assert MEASURES.keys() == METRICS.keys()


@pytest.mark.parametrize("trained", ["LoRA"], indirect=True)
def test_the_page_has_the_answers_of_all_models_the_wrong_one_first(trained: Trained) -> None:
    config = trained.bench.evaluate_config(trained.base, trained.dataset, trained.checkpoint)
    result = trained.bench.run_evaluate(config.model_copy(update={"run": "page"}))

    folder = trained.bench.store.run_folder("page", "evaluate")
    page, content = folder.read("evaluation.html"), folder.read("evaluation.json")
    assert result.report_uri == f"{folder.uri}/evaluation.html"
    assert page is not None
    assert content is not None
    assert b"<title>Better than Base" in page
    report = json.loads(content)
    assert report["outcomes"] == {"worse": 0, "better": 5, "same": 1, "wrong": 1, "truncated": 0}
    first = report["answers"][0]
    assert (first["row"], first["input"][0]["text"]) == (6, "order late?")
    assert [answer["subject"] for answer in first["answers"]] == ["Tuned", "Base"]
    assert first["answers"][0]["text"] != first["accepted"][0]["text"] == "nobody knows"


@pytest.mark.parametrize("trained", ["LoRA"], indirect=True)
def test_scores_survive_a_page_that_cannot_be_made(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> str:
        raise KeyError("answers")

    monkeypatch.setattr(stage, "write_evaluation_report", fail)
    config = trained.bench.evaluate_config(trained.base, trained.dataset, trained.checkpoint)

    result = trained.bench.run_evaluate(config.model_copy(update={"run": "no-page"}))

    assert result.scores
    assert result.report_uri is None
    assert "the evaluation has no page" in caplog.text


@pytest.mark.parametrize("trained", ["LoRA"], indirect=True)
def test_the_page_has_scores_by_a_kept_column_and_a_matrix_of_labels(trained: Trained) -> None:
    rows = [replace(row, columns=(("about", row.messages[0].content.split()[0]),)) for row in ROWS[:6]]
    config = trained.bench.evaluate_config(
        trained.base,
        trained.bench.dataset(ROWS, (), rows),
        trained.checkpoint,
        metrics=("accuracy", "loss"),
        slice_by="about",
    ).model_copy(update={"run": "slices"})
    trained.bench.run_evaluate(config)

    content = trained.bench.store.run_folder("slices", "evaluate").read("evaluation.json")
    report = json.loads(content or b"")
    parts = report["slices"]["parts"]
    assert [(part["value"], part["rows"]) for part in parts] == [
        ("invoice", 2),
        ("order", 2),
        ("box", 1),
        ("card", 1),
    ]
    assert [(score["metric"], score["subject"], score["value"]) for score in parts[0]["scores"]] == [
        ("accuracy", "Tuned", 1),
        ("accuracy", "Base", 0),
    ]
    assert report["answers"][0]["columns"].keys() == {"about"}
    tuned, base = report["confusion"]
    assert tuned["labels"] == base["labels"] == ["billing", "sales", "shipping", "support"]
    assert tuned["counts"] == [[2, 0, 0, 0, 0], [0, 2, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert [counts[-1] for counts in base["counts"]] == [2, 2, 1, 1]


def test_the_page_has_the_learning_curve_of_the_training_if_there_is_one(tmp_path: Path) -> None:
    training = Workbench(tmp_path).store.run_folder("curve", "train")
    assert read_learning_curve(training) is None
    for written, read in ((None, None), ({"points": []}, {"points": [], "lossUnit": "nats per token"})):
        report: dict[str, Any] = {"lossUnit": "nats per token", "learningCurve": written}
        training.write("report.json", json.dumps(report).encode())
        assert read_learning_curve(training) == read


def test_only_what_is_asked_for_is_measured(trained: Trained) -> None:
    result = trained.evaluate(metrics=("loss",), subjects=("Tuned",))

    assert set(values(result)) == {("Tuned", "loss")}


def test_rows_of_another_split_are_measured(trained: Trained) -> None:
    result = trained.evaluate(split="train", metrics=("exact_match",), subjects=("Tuned",))

    assert (result.split, result.scores[0].rows) == ("train", len(ROWS))
    assert values(result)["Tuned", "exact_match"] == 1


def test_an_answer_that_needs_more_tokens_than_allowed_is_wrong(trained: Trained) -> None:
    assert values(trained.evaluate(max_new_tokens=1))["Tuned", "exact_match"] == 0


def test_a_dataset_without_test_rows_says_what_to_raise(trained: Trained) -> None:
    with pytest.raises(StageFailure, match=r"no test rows .* raise split\.test") as caught:
        trained.evaluate(trained.bench.dataset(ROWS))

    assert caught.value.reason == FailureReason.INVALID_CONFIG


def test_an_adapter_that_does_not_fit_its_base_model_is_refused(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    config = bench.train_config(method=METHODS["LoRA"], epochs=1)
    folder = bench.checkpoint(bench.train(config).checkpoints[0])
    with bench.store.staging() as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        (staging / "manifest.json").unlink()
        settings = (folder / "adapter_config.json").read_text()
        (staging / "adapter_config.json").write_text(settings.replace('"r": 8', '"r": 4'))
        digest = bench.store.publish("checkpoints", staging)
    stranger = CheckpointResult(digest=digest, type="Adapter", step=1, epoch=1)

    with pytest.raises(StageFailure, match="does not fit the base model") as caught:
        bench.evaluate(config.base_model, bench.dataset(ROWS, (), ROWS[:1]), stranger)

    assert caught.value.reason == FailureReason.ARTIFACT_CORRUPT


def test_a_signal_ends_it(trained: Trained) -> None:
    stop = Stop()
    stop.set()

    with pytest.raises(Preempted):
        trained.evaluate(sheet=Sheet(stop=stop))


def test_progress_counts_rows_of_all_models(trained: Trained) -> None:
    sheet = Sheet()

    trained.evaluate(sheet=sheet)

    assert sheet.seen[-1].step == sheet.seen[-1].total_steps == 6 * 2


def test_white_space_around_an_answer_does_not_count() -> None:
    (example,) = encode_examples([Row.pair("order late?", " billing\n")], tiny_tokenizer(), 64, "test")

    assert example.accepted == {"billing"}


def test_an_answer_is_judged_as_a_client_receives_it_without_reasoning() -> None:
    tokenizer = load_tokenizer(tiny())
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )

    (example,) = encode_examples([Row.pair("order late?", "billing")], tokenizer, 64, "test")

    assert example.accepted == {"billing"}
    generated = example.encoded.input_ids[len(example.prompt) :]
    assert "<think>" in tokenizer.decode(generated)
    assert AnswerReader(tokenizer).content(example.prompt, generated) == "billing"
