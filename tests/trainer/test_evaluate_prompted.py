# SPDX-License-Identifier: Apache-2.0
"""The subject Prompted: which rows its prompt shows, and how it is measured."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from finetune_trainer.contract.evaluation import MetricOptions, PromptedModel
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.results import EvaluateResult
from finetune_trainer.data.checks.personal_data import PaymentCards
from finetune_trainer.evaluate.measurement_log import FILE
from finetune_trainer.evaluate.subjects import prompted
from finetune_trainer.evaluate.subjects.prompted import FewShotPrompt, ShownRow, choose_rows
from finetune_trainer.manifest import digest_of
from finetune_trainer.rows import Message, Row
from finetune_trainer.tokens.chat_template import has_system_turn, load_tokenizer
from finetune_trainer.tokens.encoding import IGNORE_INDEX, RowEncoder
from tests.trainer.workbench import JUDGED, ROWS, TEAMS, Workbench, tiny_tokenizer
from tools.models import tiny

EVALUATED = (Row.pair("parcel late?", "shipping"),)
TOOLS = '[{"type":"function"}]'


def chosen(training: tuple[Row, ...], count: int, **settings: Any) -> list[ShownRow]:
    arguments: dict[str, Any] = {"evaluated": EVALUATED, "seed": 1, "fits": lambda _: True} | settings
    return choose_rows(training, count=count, **arguments)


def test_labels_take_turns_and_the_seed_decides_their_order() -> None:
    many = tuple(Row.pair(f"{row.messages[0].content} {n}", row.output) for n in range(4) for row in ROWS)
    skewed = (*many, *(Row.pair(f"refund {n}", "billing") for n in range(100)))

    shown = chosen(skewed, 8)

    assert Counter(each.row.output for each in shown) == dict.fromkeys(TEAMS, 2)
    assert {each.row.output for each in shown[:4]} == set(TEAMS)
    assert chosen(skewed, 8) == shown
    assert chosen(skewed, 8, seed=2) != shown
    assert all(skewed[each.number - 1] == each.row for each in shown)


def test_other_answers_are_a_sample() -> None:
    free = tuple(Row.pair(f"question {n}", f"answer {n}") for n in range(200))

    shown = chosen(free, 5)

    assert len({each.number for each in shown}) == 5
    assert shown != sorted(shown, key=lambda each: each.number)
    assert chosen(free, 5) == shown


def test_no_row_is_shown_that_has_the_input_of_an_evaluated_row_other_tools_or_a_bad_answer() -> None:
    same_input = Row.pair("order late?", "sales")
    with_tools = replace(Row((*same_input.messages,)), tools=TOOLS)
    bad = tuple(row for row in JUDGED if row.label is False)

    shown = chosen((same_input, with_tools, *bad, ROWS[5]), 9, evaluated=(ROWS[0],))

    assert [each.number for each in shown] == [len(bad) + 3]


def test_a_row_that_does_not_fit_is_skipped() -> None:
    long = Row.pair("order late? " * 50, "billing")

    shown = chosen((long, *ROWS), 13, fits=lambda rows: all(each.row != long for each in rows))

    assert {each.row for each in shown} == set(ROWS)


@pytest.mark.parametrize(
    ("has_turn", "first"),
    [
        (True, [Message("system", "name a team\n\nbe kind"), Message("user", "box late?")]),
        (False, [Message("user", "name a team\n\nbe kind\n\nbox late?")]),
    ],
)
def test_the_prompt_is_a_conversation_before_the_row(has_turn: bool, first: list[Message]) -> None:
    row = Row((Message("system", "be kind"), *EVALUATED[0].messages))
    shown = (ShownRow(1, Row.pair("box late?", "shipping")),)

    applied = FewShotPrompt("name a team", shown, has_turn).apply(row)

    assert applied.messages == (
        *first,
        Message("assistant", "shipping", learned=False),
        *EVALUATED[0].messages,
    )


def test_templates_that_reject_or_omit_system_turns_are_recognized() -> None:
    tokenizer = load_tokenizer(tiny())
    turns = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    known = {}
    for name, template in {
        "renders": turns,
        "rejects": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + turns,
        "omits": "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}"
        "</s>{% endfor %}",
    }.items():
        tokenizer.chat_template = template
        known[name] = has_system_turn(tokenizer)

    assert known == {"renders": True, "rejects": False, "omits": False}


CARD = "4012888888881881"


class Prompted:
    """An evaluation with the subject Prompted."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.base = bench.model()
        self.dataset = bench.dataset(ROWS[:8], (), ROWS[8:])
        config = bench.train_config(self.base, self.dataset, method=Method(lora=LoRA(r=4)), epochs=1, rows=8)
        (self.checkpoint,) = bench.train(config).checkpoints

    def evaluate(self, run: str, **settings: Any) -> EvaluateResult:
        config = self.bench.evaluate_config(
            self.base, self.dataset, self.checkpoint, subjects=("Tuned", "Base", "Prompted"), **settings
        )
        return self.bench.run_evaluate(config.model_copy(update={"run": run}))

    def read(self, run: str, name: str) -> bytes:
        content = self.bench.store.run_folder(run, "evaluate").read(name)
        assert content is not None
        return content


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Prompted:
    return Prompted(Workbench(tmp_path_factory.mktemp("prompted")))


def test_the_prompted_base_model_is_measured_on_the_same_rows_and_its_prompt_is_recorded(
    evaluation: Prompted,
) -> None:
    settings = PromptedModel(system_prompt="Name the team.", examples=3)

    result = evaluation.evaluate("recorded", prompted=settings)

    assert {(score.subject, score.rows) for score in result.scores} == {
        ("Tuned", 4),
        ("Base", 4),
        ("Prompted", 4),
    }
    losses = {score.subject: score.value for score in result.scores if score.metric == "loss"}
    assert losses["Prompted"] != losses["Base"]
    assert not result.unmeasured
    assert result.prompt == digest_of(evaluation.read("recorded", prompted.PROMPT_FILE))
    record = json.loads(evaluation.read("recorded", prompted.PROMPT_FILE))
    assert record["systemPrompt"] == "Name the team."
    assert record["requestedExamples"] == len(record["examples"]) == 3
    shown = [each["messages"][0]["content"] for each in record["examples"]]
    assert all(row in [each.messages[0].content for each in ROWS[:8]] for row in shown)
    first = record["firstPrompt"]
    places = [first.index(text) for text in ("Name the team.", *shown, ROWS[8].messages[0].content)]
    assert places == sorted(places)
    report = json.loads(evaluation.read("recorded", "evaluation.json"))
    assert report["prompt"]["systemPrompt"]["text"] == "Name the team."
    assert [each["turns"][0]["text"] for each in report["prompt"]["examples"]] == shown
    assert {json.loads(line)["subject"] for line in evaluation.read("recorded", FILE).splitlines()[1:]} == {
        "Tuned",
        "Base",
        "Prompted",
    }


def test_secrets_are_hidden_in_what_people_read_and_kept_in_the_predictions(evaluation: Prompted) -> None:
    """Scores and metrics of the user need the answers as they were."""

    def with_card(row: Row) -> Row:
        asked = replace(row.messages[0], content=f"{row.messages[0].content} my card is {CARD}")
        answered = replace(row.messages[1], content=f"{row.output} {CARD}")
        return replace(row, messages=(asked, answered), columns=(("card", CARD),))

    rows = [with_card(row) for row in ROWS]
    dataset = evaluation.bench.dataset(rows[:8], (), rows[8:])
    settings = PromptedModel(system_prompt=f"Never name {CARD}.", examples=2)
    config = evaluation.bench.evaluate_config(
        evaluation.base,
        dataset,
        evaluation.checkpoint,
        subjects=("Tuned", "Prompted"),
        metrics=("accuracy",),
        options=MetricOptions(labels=tuple(sorted({row.output for row in rows}))),
        prompted=settings,
        slice_by="card",
    ).model_copy(update={"run": "hidden"})
    evaluation.bench.run_evaluate(config)
    folder = evaluation.bench.store.run_folder("hidden", "evaluate")
    header, *lines = evaluation.read("hidden", FILE).decode().splitlines()
    repeated = [json.dumps(json.loads(line) | {"text": CARD}) for line in lines]
    folder.write(FILE, "\n".join([header, *repeated, ""]).encode())

    evaluation.bench.run_evaluate(config)

    assert evaluation.read("hidden", FILE).decode().count(CARD) == len(lines)
    for name in ("evaluation.html", "evaluation.json", prompted.PROMPT_FILE):
        content = evaluation.read("hidden", name).decode()
        assert CARD not in content
        assert PaymentCards.placeholder in content


def test_the_loss_is_that_of_the_answer_given_the_whole_prompt(evaluation: Prompted) -> None:
    """The prompt is longer than the rows of training may be, and no labelled token is lost."""
    plain = RowEncoder(tiny_tokenizer()).encode(ROWS[8])
    settings = PromptedModel(examples=8)
    limits = {"max_sequence_length": len(plain.input_ids)}

    result = evaluation.evaluate("long", prompted=settings, metrics=("loss",), **limits)

    assert {score.subject for score in result.scores} == {"Tuned", "Base", "Prompted"}
    shown = FewShotPrompt("", (ShownRow(1, ROWS[0]),), has_system_turn=True)
    encoded = RowEncoder(tiny_tokenizer()).encode(shown.apply(ROWS[8]))
    learned = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert learned == [label for label in plain.labels if label != IGNORE_INDEX]


def test_a_prompt_fits_into_the_context_of_the_base_model(
    evaluation: Prompted, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(len(RowEncoder(tiny_tokenizer()).encode(row).input_ids) for row in ROWS)
    monkeypatch.setattr(prompted, "read_context_length", lambda _: 3 * longest)

    evaluation.evaluate("fits", prompted=PromptedModel(examples=8), metrics=("loss",))

    record = json.loads(evaluation.read("fits", prompted.PROMPT_FILE))
    assert record["requestedExamples"] == 8
    assert 0 < len(record["examples"]) < 3


def test_nothing_to_show_leaves_prompted_out_and_measures_the_rest(
    evaluation: Prompted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompted, "read_context_length", lambda _: 1)

    result = evaluation.evaluate("nothing", prompted=PromptedModel(examples=8))

    assert {score.subject for score in result.scores} == {"Tuned", "Base"}
    assert result.prompt is None
    (left_out,) = result.unmeasured
    assert left_out.subject == "Prompted"
    assert "Set systemPrompt" in left_out.message
