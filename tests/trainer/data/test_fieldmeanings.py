# SPDX-License-Identifier: Apache-2.0
"""Fields whose names have a meaning for training: they are read, or a warning names them."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.result import Prepared
from finetune_trainer.data.row_problems import Code
from tests.trainer.data.reading import Outcome, chat, json_lines, pairs, parquet_bytes, read, turns

FRENCH = "Answer in French."
SYSTEM = {"role": "system", "content": FRENCH}
ANSWER, WORSE = (turns(text, roles=("assistant",)) for text in ("b", "c"))


def read_json(folder: Path, *rows: Any, **recipe: Any) -> Outcome:
    return read(folder, json_lines(rows), Recipe(**recipe))


def prepared(folder: Path, rows: list[Any], **recipe: Any) -> Prepared:
    source = folder / "rows.jsonl"
    source.write_text(json_lines(rows))
    (folder / "out").mkdir()
    return prepare([SourceFile(source)], Recipe(**recipe), folder / "out")


def ignored(result: Prepared) -> list[str]:
    return [problem.issue.what for problem in result.problems if problem.issue.code == Code.FIELDS_IGNORED]


CHAT = {"messages": [SYSTEM, *turns("a", "b")]}
PREFERENCE = {"prompt": [SYSTEM, *turns("a")], "chosen": ANSWER, "rejected": WORSE}
KTO = {"prompt": [SYSTEM, *turns("a")], "completion": ANSWER, "label": True}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat("a", "b"), CHAT),
        ({"prompt": "a", "completion": "b"}, CHAT),
        ({"prompt": turns("a"), "completion": ANSWER}, CHAT),
        ({"instruction": "a", "output": "b"}, CHAT),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, CHAT),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, PREFERENCE),
        ({"chosen": turns("a", "b"), "rejected": turns("a", "c")}, PREFERENCE),
        ({"prompt": "a", "completion": "b", "label": True}, KTO),
    ],
    ids=["chat", "pair", "messages", "Alpaca", "ShareGPT", "preference", "conversations", "KTO"],
)
@pytest.mark.parametrize("system", [FRENCH, [{"type": "text", "text": FRENCH}]], ids=["text", "parts"])
def test_a_system_text_beside_the_turns_is_the_first_turn(
    tmp_path: Path, row: dict[str, Any], expected: dict[str, Any], system: Any
) -> None:
    outcome = read_json(tmp_path, {**row, "system": system})

    assert (outcome.problems, outcome.unused, outcome.dicts) == ([], (), [expected])


@pytest.mark.parametrize("system", ["", None, []], ids=["empty", "null", "empty list"])
def test_an_empty_system_text_adds_no_turn(tmp_path: Path, system: Any) -> None:
    assert read_json(tmp_path, {**chat("a", "b"), "system": system}).dicts == [chat("a", "b")]


def test_a_system_text_that_the_turns_repeat_is_one_turn_and_another_one_is_refused(tmp_path: Path) -> None:
    outcome = read_json(tmp_path, {**CHAT, "system": FRENCH}, {**CHAT, "system": "Answer in Greek."})

    assert outcome.dicts == [CHAT]
    assert outcome.problems[0].startswith(
        "row 2: messages[0] is a system message, and the row also has system"
    )


@pytest.mark.parametrize(
    "recipe",
    [
        {"names": FieldNames(template="{system}: {prompt}")},
        {"division": Split(group_by="system")},
        {"kept_columns": ("system",)},
    ],
    ids=["template", "group", "kept column"],
)
def test_a_column_named_system_with_a_role_in_the_recipe_is_no_turn(tmp_path: Path, recipe: Any) -> None:
    row = {**pairs(1)[0], "system": "SAP"}

    (read_row,) = read(tmp_path, json_lines([row]), Recipe(**recipe)).rows

    assert [message.role for message in read_row.messages] == ["user", "assistant"]


def test_a_column_of_a_table_can_be_the_system_text(tmp_path: Path) -> None:
    content = f"system,prompt,completion\n{FRENCH},a,b\n,c,d\n"

    assert read(tmp_path, content).dicts == [CHAT, {"prompt": "c", "completion": "d"}]


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_turns_with_train_false_are_context_only(tmp_path: Path, form: str) -> None:
    row = chat("a", "weak", "b", "good")
    for message, train in zip(row["messages"], (False, False, None, True), strict=True):
        message["train"] = train
    if form == "conversations":
        names = {"user": "human", "assistant": "gpt"}
        row = {
            form: [
                {"from": names[turn["role"]], "value": turn["content"], "train": turn["train"]}
                for turn in row["messages"]
            ]
        }

    outcome = read_json(tmp_path, row)

    assert (outcome.problems, outcome.unused) == ([], ())
    assert [message.learned for message in outcome.rows[0].messages] == [True, False, True, True]


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ({"train": "no"}, "messages[1].train is 'no'; expected true or false"),
        ({"train": False, "weight": 1}, "messages[1].train contradicts weight"),
        ({"train": False}, "messages has no assistant turn of weight 1"),
    ],
    ids=["text", "contradiction", "nothing to learn"],
)
def test_train_is_true_or_false_and_agrees_with_weight(
    tmp_path: Path, turn: dict[str, Any], problem: str
) -> None:
    row = chat("a", "b")
    row["messages"][1] |= turn

    assert read_json(tmp_path, row).problems[0].startswith(f"row 1: {problem}")


def test_only_the_assistants_turns_can_be_trained(tmp_path: Path) -> None:
    row = chat("a", "b")
    row["messages"][0]["train"] = True

    assert "messages[0].train is true in a turn of user" in read_json(tmp_path, row).problems[0]


# UltraFeedback, binarized: the data of Zephyr on the Hugging Face hub.
BINARIZED = {
    "prompt": "a",
    "prompt_id": "x",
    "chosen": turns("a", "b"),
    "rejected": turns("a", "c"),
    "messages": turns("a", "b"),
    "score_chosen": 8.5,
    "score_rejected": 3.0,
}


@pytest.mark.parametrize(
    "row",
    [
        BINARIZED,
        {"prompt": "a", "chosen": "b", "rejected": "c", "messages": turns("a")},
        {"messages": turns("a"), "chosen": "b", "rejected": "c"},
        {"messages": turns("a", "b"), "chosen": turns("a", "b"), "rejected": turns("a", "c")},
    ],
    ids=["UltraFeedback", "history", "messages as the prompt", "no prompt"],
)
def test_two_answers_beside_messages_are_a_preference(tmp_path: Path, row: dict[str, Any]) -> None:
    outcome = read(tmp_path, parquet_bytes([row]), Recipe())

    assert (outcome.format, outcome.problems) == ("Preference", [])
    assert outcome.dicts == [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    assert "messages" not in outcome.unused


def test_a_preference_does_not_drop_other_turns_of_its_messages(tmp_path: Path) -> None:
    outcome = read_json(tmp_path, {**BINARIZED, "messages": turns("x", "y", "a", "b")})

    assert outcome.problems[0].startswith("row 1: messages has other turns than the prompt and its answers")


def test_messages_that_the_recipe_names_are_a_chat_and_the_two_answers_cause_warnings(
    tmp_path: Path,
) -> None:
    result = prepared(tmp_path, [BINARIZED], names=FieldNames(messages="messages"))

    assert result.format == "ChatMessages"
    assert ignored(result) == [
        '"chosen" is not read; by its name it may be a better or a worse answer',
        '"rejected" is not read; by its name it may be a better or a worse answer',
    ]


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("system_prompt", FRENCH, "may be the system prompt of the row"),
        ("systemPrompt", FRENCH, "may be the system prompt of the row"),
        ("context", "the boat is late", "may be a part of the prompt"),
        ("weight", 0.5, "may say what is learned, or how strongly"),
        ("train", False, "may say what is learned, or how strongly"),
        ("loss", 0.5, "may say what is learned, or how strongly"),
        ("answer", "by ten", "may be the answer, or rate it"),
        ("rating", 4.5, "may rate the answer"),
        ("score", 1, "may rate the answer"),
        ("Feedback", "too long", "may rate the answer"),
        ("split", "train", "may be the split of the row"),
        ("reasoning_content", "hm", "may be the reasoning before the answer"),
        ("images", ["a.png"], "may be a part of the input that is not text"),
    ],
)
def test_a_field_with_a_meaning_that_nothing_reads_causes_a_warning(
    tmp_path: Path, name: str, value: Any, meaning: str
) -> None:
    result = prepared(tmp_path, [{**pairs(1)[0], name: value}])

    assert result.unread_fields == (name,)
    assert ignored(result) == [f'"{name}" is not read; by its name it {meaning}']


def test_a_field_of_messages_has_a_meaning_too(tmp_path: Path) -> None:
    row = chat("a", "b")
    row["messages"][1] |= {"thinking": "hm", "mood": "good"}

    result = prepared(tmp_path, [row])

    assert result.unused_fields == ("messages[].thinking", "messages[].mood")
    assert result.unread_fields == ("messages[].thinking",)


def test_a_field_with_a_meaning_is_found_among_any_number_of_others(tmp_path: Path) -> None:
    others = {f"field{number}": number for number in range(500)}

    assert prepared(tmp_path, [{**pairs(1)[0], **others, "weight": 2}]).unread_fields == ("weight",)


@pytest.mark.parametrize(
    "recipe",
    [
        {"kept_columns": ("score",)},
        {"names": FieldNames(template="{prompt} {score}", completion="completion")},
    ],
    ids=["kept column", "template"],
)
def test_a_field_that_the_recipe_names_causes_no_warning(tmp_path: Path, recipe: Any) -> None:
    assert ignored(prepared(tmp_path, [{**pairs(1)[0], "score": 4.5}], **recipe)) == []


@pytest.mark.parametrize("value", ["", None, []], ids=["empty", "null", "empty list"])
def test_a_field_without_values_causes_no_warning(tmp_path: Path, value: Any) -> None:
    result = prepared(tmp_path, [{**pairs(1)[0], "images": value}])

    assert (result.unused_fields, result.unread_fields) == ((), ())


FORMS: list[DataFormat] = ["PromptCompletion", "ChatMessages"]


@pytest.mark.parametrize("form", FORMS)
def test_a_forced_format_does_not_silence_the_warning(tmp_path: Path, form: DataFormat) -> None:
    row = {**pairs(1)[0], **chat("a", "b"), "feedback": "thumbs_down"}

    assert prepared(tmp_path, [row], format=form).unread_fields == ("feedback",)
