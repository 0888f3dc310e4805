# SPDX-License-Identifier: Apache-2.0
"""Metrics that need more than the row: labels, a schema, a pattern, tool calls."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import LiveModel, MetricOptions
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.contract.results import CheckpointResult, EvaluateResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.entrypoint.dispatch import base_to_load
from finetune_trainer.evaluate.examples import encode_examples
from finetune_trainer.evaluate.measured_model import MeasuredModel, find_lowest_loss
from finetune_trainer.evaluate.measurement_log import FILE
from finetune_trainer.rows import Message, Row
from finetune_trainer.runtime.termination import StageFailure
from tests.trainer.workbench import JUDGED, OWNER, ROWS, TEAMS, Workbench, tiny_tokenizer
from tools.models import tiny

CLASSIFICATION: Final = ("accuracy", "macro_f1")
TEST: Final = (*ROWS[:5], Row.pair("order late?", "sales"))


class Memorized:
    """A checkpoint that has memorized `ROWS`."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.base: Digest = bench.model()
        config = bench.train_config(
            self.base,
            bench.dataset(ROWS),
            method=Method(lora=LoRA(r=8, alpha=16, dropout=0)),
            epochs=25,
            learning_rate=1e-2,
            batch_size=4,
            save_every_steps=1000,
        )
        self.checkpoint: CheckpointResult
        (self.checkpoint,) = bench.train(config).checkpoints

    def evaluate(
        self, test: tuple[Row, ...], train: tuple[Row, ...] = ROWS, **settings: Any
    ) -> EvaluateResult:
        return self.bench.evaluate(
            self.base, self.bench.dataset(train, (), test), self.checkpoint, **settings
        )

    def refusal(self, test: tuple[Row, ...], train: tuple[Row, ...] = ROWS, **settings: Any) -> str:
        with pytest.raises(StageFailure) as caught:
            self.evaluate(test, train, **settings)
        assert caught.value.reason == FailureReason.INVALID_CONFIG
        return caught.value.message


@pytest.fixture(scope="module")
def memorized(tmp_path_factory: pytest.TempPathFactory) -> Memorized:
    return Memorized(Workbench(tmp_path_factory.mktemp("options")))


def values(result: EvaluateResult) -> dict[tuple[str, str], float]:
    return {(score.subject, score.metric): score.value for score in result.scores}


def test_labels_are_the_answers_of_the_data(memorized: Memorized) -> None:
    scores = values(memorized.evaluate(TEST, metrics=CLASSIFICATION))

    assert scores["Tuned", "accuracy"] == pytest.approx(5 / 6)
    assert scores["Base", "accuracy"] == scores["Base", "macro_f1"] == 0
    # billing twice right; sales once of two, and the wrong answer to it is billing; the others are right.
    assert scores["Tuned", "macro_f1"] == pytest.approx((0.8 + 2 / 3 + 1 + 1) / 4)


def test_a_constrained_answer_is_always_a_label(memorized: Memorized) -> None:
    """The base model names no label by itself; the likeliest label is right now and then."""
    bench = memorized.bench
    config = bench.evaluate_config(
        memorized.base,
        bench.dataset(ROWS, (), TEST),
        memorized.checkpoint,
        metrics=("accuracy",),
        options=MetricOptions(constrained_labels=True),
    ).model_copy(update={"run": "constrained"})

    result = bench.run_evaluate(config)

    assert values(result)["Tuned", "accuracy"] == pytest.approx(5 / 6)
    file = Path(bench.store_config.path) / "runs" / "constrained" / "evaluate" / FILE
    rows = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert {row["choice"] for row in rows} <= set(range(len(TEAMS)))
    assert {row.get("text") for row in rows} == {None}


def test_the_choice_is_the_label_with_the_highest_summed_log_probability() -> None:
    tokenizer, labels = tiny_tokenizer(), ("billing", "a long label of many tokens", "no")
    model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    examples = encode_examples(list(ROWS[:6]), tokenizer, 64, "test", choices=labels)
    measured = MeasuredModel(model, tokenizer, max_new_tokens=8, on_token=lambda: None)

    chosen = [find_lowest_loss(losses) for losses in measured.choice_losses(examples)]

    expected = []
    for example in examples:
        sums = []
        for answer in example.choices:
            ids = torch.tensor([[*example.prompt, *answer]])
            with torch.inference_mode():
                probabilities = model(ids).logits[0].float().log_softmax(-1)
            start = len(example.prompt)
            sums.append(sum(float(probabilities[start + n - 1, token]) for n, token in enumerate(answer)))
        expected.append(max(range(len(labels)), key=sums.__getitem__))
    assert chosen == expected
    assert str(tokenizer.decode(examples[0].choices[0])).startswith("billing")


def test_a_label_that_does_not_fit_into_the_context_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    examples = encode_examples(list(ROWS[:2]), tokenizer, 64, "test", choices=TEAMS)
    model.config.max_position_embeddings = len(examples[0].prompt)
    measured = MeasuredModel(model, tokenizer, max_new_tokens=8, on_token=lambda: None)

    assert [find_lowest_loss(losses) for losses in measured.choice_losses(examples)] == [None, None]


JSON_ROWS: Final = tuple(
    Row.pair(row.messages[0].content, json.dumps({"team": row.output, "late": True})) for row in ROWS
)
CALL: Final = json.dumps([{"type": "function", "function": {"name": "route", "arguments": {"to": "sales"}}}])


@pytest.mark.parametrize(
    ("metric", "options", "rows", "words"),
    [
        (
            "accuracy",
            {},
            tuple(Row.pair(row.messages[0].content, f"answer {n}") for n, row in enumerate(ROWS)),
            "evaluation.options.labels: accuracy needs labels, but the 24 rows of the dataset have 16",
        ),
        (
            "macro_f1",
            {"labels": ("billing", "sales")},
            ROWS,
            "evaluation.options.labels: the answer of test row 3 is not one of the labels that",
        ),
        ("regex_match", {}, ROWS, "evaluation.options.pattern: regex_match needs a pattern; set it"),
        ("regex_match", {"pattern": "a("}, ROWS, "evaluation.options.pattern: RE2 does not support it"),
        ("json_valid", {"json_schema": "{"}, ROWS, "evaluation.options.jsonSchema: Expecting property"),
        ("json_fields", {}, ROWS, "evaluation.metrics: json_fields needs an answer in JSON, but no test"),
        ("tool_call_match", {}, ROWS, "evaluation.metrics: tool_call_match needs an answer that calls a"),
    ],
)
def test_a_metric_without_what_it_needs_names_the_field(
    memorized: Memorized, metric: str, options: dict[str, Any], rows: tuple[Row, ...], words: str
) -> None:
    message = memorized.refusal(rows, metrics=(metric,), options=MetricOptions(**options))

    assert message.startswith(words)


def test_rows_without_json_do_not_count_for_its_fields(memorized: Memorized) -> None:
    result = memorized.evaluate(
        (*JSON_ROWS[:2], *ROWS[:2]), metrics=("json_fields", "json_valid"), subjects=("Tuned",)
    )

    assert values(result) == {("Tuned", "json_fields"): 0, ("Tuned", "json_valid"): 0}


def test_answers_are_compared_with_schema_and_pattern(memorized: Memorized) -> None:
    options = MetricOptions(json_schema='{"type": "string"}', pattern="b.*|s.*")
    result = memorized.evaluate(
        ROWS[:4], metrics=("json_valid", "regex_match"), options=options, subjects=("Tuned",)
    )

    assert values(result) == {("Tuned", "json_valid"): 0, ("Tuned", "regex_match"): 1}


def test_only_desirable_answers_are_labels(memorized: Memorized) -> None:
    result = memorized.evaluate(JUDGED, JUDGED, metrics=("accuracy",), subjects=("Tuned",))

    assert values(result)["Tuned", "accuracy"] == 1


def test_the_calls_of_a_row_are_expected_calls() -> None:
    messages = (Message("user", "route it"), Message("assistant", "", tool_calls=CALL))
    tokenizer = tiny_tokenizer()
    tokenizer = tokenizer.__class__.from_pretrained(tiny())
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% for c in m['tool_calls'] or [] %}"
        "{{ c['function'] | tojson }}{% endfor %}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )

    (example,) = encode_examples([Row(messages)], tokenizer, 64, "test")

    assert example.calls == ('["route", {"to": "sales"}]',)
    assert example.accepted == frozenset()


def test_choices_of_a_pair_are_answers_to_its_prompt() -> None:
    pair = replace(ROWS[0], form="Preference", rejected="nobody knows")

    (example,) = encode_examples([pair], tiny_tokenizer(), 64, "test", choices=("billing",))

    assert example.choice(0) == example.encoded


A, B = ("sha256:" + letter * 64 for letter in "ab")


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        ({}, A),
        ({"checkpoint_type": "Full", "subjects": ("Tuned", "Base")}, A),
        ({"checkpoint_type": "Full", "subjects": ("Tuned",)}, None),
        ({"checkpoint_type": "Full", "live": ("Adapter", A)}, A),
        ({"checkpoint_type": "Full", "live": ("Adapter", B)}, None),
        ({"checkpoint_type": "Full", "live": ("Full", A)}, None),
    ],
)
def test_the_base_model_is_read_ahead_only_if_it_is_loaded(
    settings: dict[str, Any], base: str | None
) -> None:
    type_, of = settings.get("live", ("Full", B))
    live = LiveModel(name="before", digest=B, type=type_, base_model=of)
    given: dict[str, Any] = {"subjects": ("Tuned", "Live"), **settings, "live": live}
    common: dict[str, Any] = {
        "owner": OWNER,
        "run": "run",
        "store": StoreConfig(uri="pvc://artifacts", path=""),
    }

    config = EvaluateConfig(**common, base_model=A, dataset=B, checkpoint=B, **given)

    assert base_to_load(config) == base
