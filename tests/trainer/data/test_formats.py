# SPDX-License-Identifier: Apache-2.0
"""Rows of each format, read from files in the form of the tools' current versions."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Split
from finetune_trainer.data.recipe import FieldNames, Recipe
from tests.trainer.data.reading import (
    Outcome,
    chat,
    gzipped,
    json_lines,
    parquet_bytes,
    read,
    turns,
    zstandarded,
)

FIXTURES = Path(__file__).parent / "fixtures"


def read_fixture(folder: Path, name: str, recipe: Recipe | None = None) -> Outcome:
    return read(folder, (FIXTURES / name).read_bytes(), recipe or Recipe(), name)


# Pairs.


def test_line_ends_in_texts_are_line_feeds(tmp_path: Path) -> None:
    outcome = read(tmp_path, 'prompt,completion\r\n"a\r\nb",c\r\n')

    assert outcome.dicts == [{"prompt": "a\nb", "completion": "c"}]


def test_a_template_builds_the_prompt_from_several_columns(tmp_path: Path) -> None:
    recipe = Recipe(names=FieldNames(template="{{{id}}} {subject}\n{body}", completion="queue"))

    outcome = read(tmp_path, "id,subject,body,queue\n7,Invoice,,billing\n8,,No one came,dispatch\n", recipe)

    assert outcome.format == "CSV"
    assert outcome.dicts == [
        {"prompt": "{7} Invoice\n", "completion": "billing"},
        {"prompt": "{8} \nNo one came", "completion": "dispatch"},
    ]
    assert outcome.unused == ()


def test_a_template_writes_numbers_and_booleans_as_in_json(tmp_path: Path) -> None:
    recipe = Recipe(names=FieldNames(template="{a} {b} {c} {d}"))

    outcome = read(
        tmp_path, json_lines([{"a": 1, "b": 2.5, "c": True, "d": None, "completion": "x"}]), recipe
    )

    assert [row.input[0].content for row in outcome.rows] == ["1 2.5 true "]


# Chats. The shape is that of the chat API and of the fine-tuning files of OpenAI
# (Fine-tuning guide and API reference, 2025).

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
    },
}
CALLING: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": "You know the weather."},
        {"role": "user", "content": "What is the weather in San Francisco?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_id",
                    "type": "function",
                    "function": {"name": "get_current_weather", "arguments": '{"location": "San Francisco"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_id", "name": "get_current_weather", "content": "21"},
        {"role": "assistant", "content": "It is 21 degrees.", "refusal": None},
    ],
    "parallel_tool_calls": False,
    "tools": [WEATHER],
}


def test_tool_calls_are_kept_with_their_arguments_as_objects(tmp_path: Path) -> None:
    outcome = read(tmp_path, json_lines([CALLING]))

    assert (outcome.problems, outcome.unused) == ([], ())
    (row,) = outcome.dicts
    assert row["tools"] == [WEATHER]
    assert row["messages"][0] == {"role": "system", "content": "You know the weather."}
    assert row["messages"][2] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_id",
                "type": "function",
                "function": {"name": "get_current_weather", "arguments": {"location": "San Francisco"}},
            }
        ],
    }
    assert row["messages"][3] == CALLING["messages"][3]


def test_arguments_as_objects_and_as_texts_are_the_same_row(tmp_path: Path) -> None:
    other = json.loads(json.dumps(CALLING))
    function = other["messages"][2]["tool_calls"][0]["function"]
    function["arguments"] = json.loads(function["arguments"])

    first, second = read(tmp_path, json_lines([CALLING, other])).rows

    assert first == second


def test_a_tool_may_be_called_again_and_several_tools_at_once(tmp_path: Path) -> None:
    call = CALLING["messages"][2]
    twice = {**call, "tool_calls": [{**call["tool_calls"][0], "id": name} for name in ("a", "b")]}
    answers = [{"role": "tool", "tool_call_id": name, "content": "21"} for name in ("b", "a")]
    messages = [*CALLING["messages"][1:4], twice, *answers, *CALLING["messages"][4:]]

    outcome = read(tmp_path, json_lines([{"messages": messages}]))

    assert outcome.problems == []
    assert len(outcome.rows[0].messages) == len(messages)


def test_absent_tools_and_calls_may_be_null_or_an_empty_list(tmp_path: Path) -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "b",
        "tool_calls": [],
        "weight": None,
        "name": None,
    }
    row = {"messages": [*turns("a"), message], "tools": []}

    outcome = read(tmp_path, json_lines([row, {**row, "tools": None, "functions": None}]))

    assert (outcome.dicts, outcome.problems) == ([chat("a", "b"), chat("a", "b")], [])


def test_weights_select_the_answers_that_are_learned(tmp_path: Path) -> None:
    messages = turns("a", "b", "c", "d")
    messages[1]["weight"] = 0
    messages[3]["weight"] = 1

    (row,) = read(tmp_path, json_lines([{"messages": messages}])).rows

    assert [message.learned for message in row.messages] == [True, False, True, True]


def test_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]

    outcome = read(
        tmp_path, json_lines([{"messages": [{"role": "user", "content": parts}, *turns("", "b")[1:]]}])
    )

    assert outcome.rows[0].messages[0].content == "one two"


def test_fields_of_messages_that_are_not_used_are_named(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a", "name": "Ann", "mood": "good"}, *turns("", "b")[1:]]

    assert read(tmp_path, json_lines([{"messages": messages, "id": 1}])).unused == ("messages[].mood", "id")


def test_chats_of_parquet_have_null_for_absent_fields_of_a_message(tmp_path: Path) -> None:
    messages = turns("a", "b", "c", "d")
    messages[1]["weight"] = 0

    outcome = read(tmp_path, parquet_bytes([{"messages": messages}]))

    assert outcome.dicts == [{"messages": messages}]
    assert outcome.unused == ()


# Alpaca: alpaca_data.json of tatsu-lab/stanford_alpaca; `system` and `history` as in data/README.md of
# hiyouga/LLaMA-Factory.


def test_alpaca(tmp_path: Path) -> None:
    outcome = read_fixture(tmp_path, "alpaca.json")

    assert (outcome.format, outcome.problems, outcome.unused) == ("Alpaca", [], ())
    assert outcome.dicts == [
        {
            "prompt": "Give three tips for staying healthy.",
            "completion": "1. Eat well.\n2. Move.\n3. Sleep.",
        },
        {"prompt": "Name the capital.\n\nFrance", "completion": "Paris"},
        {
            "messages": [
                {"role": "system", "content": "Answer with one word."},
                *turns(
                    "What is the capital of France?",
                    "Paris",
                    "And of Spain?",
                    "Madrid",
                    "And of Italy?",
                    "Rome",
                ),
            ]
        },
    ]


# ShareGPT: dummy_conversation.json of lm-sys/FastChat; `system` as in data/README.md of
# hiyouga/LLaMA-Factory,
# `weight` as in the documentation of axolotl.


def test_sharegpt(tmp_path: Path) -> None:
    outcome = read_fixture(tmp_path, "sharegpt.json")

    assert (outcome.format, outcome.problems, outcome.unused) == ("ShareGPT", [], ())
    first, second = outcome.dicts
    assert first == chat("Who are you?", "Vicuna.", "Have a nice day!", "You too!")
    assert second["messages"] == [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Good day.", "weight": 0},
        *turns("Be brief.", "Yes."),
    ]


# Label Studio 1.2x: JSON as in the guide "Label Studio Task Format"; JSON_MIN, CSV and TSV as written by
# convert_to_json_min in converter.py and by exports/csv2.py of HumanSignal/label-studio-sdk.

INTENTS = [
    {"prompt": "The invoice shows a service we cancelled in May.", "completion": "billing"},
    {"prompt": "Nobody came on Tuesday,\nand nobody called.", "completion": "dispatch, complaint"},
]


@pytest.mark.parametrize(
    "name", ["labelstudio.json", "labelstudio-min.json", "labelstudio.csv", "labelstudio.tsv"]
)
def test_label_studio(tmp_path: Path, name: str) -> None:
    recipe = Recipe(names=FieldNames(completion="intent"), division=Split(group_by="customer"))

    outcome = read_fixture(tmp_path, name, recipe)

    assert outcome.format == "LabelStudio"
    assert outcome.dicts == INTENTS
    assert [str(raw.group) for raw in outcome.raw_rows] == ["1", "0"]
    is_flat = name != "labelstudio.json"
    assert outcome.unused == (("reply",) if is_flat else ())
    assert [problem.split(";")[0] for problem in outcome.problems] == (
        [] if is_flat else ["row 3: has no annotation"]
    )


@pytest.mark.parametrize(
    "name", ["labelstudio.json", "labelstudio-min.json", "labelstudio.csv", "labelstudio.tsv"]
)
def test_texts_of_label_studio_are_completions_too(tmp_path: Path, name: str) -> None:
    outcome = read_fixture(tmp_path, name, Recipe(names=FieldNames(completion="reply")))

    assert [row.output for row in outcome.rows] == [
        "We will correct the invoice.",
        "We are sorry; a technician comes today.",
    ]


@pytest.mark.parametrize("name", ["labelstudio-min.json", "labelstudio.csv"])
def test_several_control_tags_of_label_studio_require_a_choice_by_the_user(tmp_path: Path, name: str) -> None:
    problem = read_fixture(tmp_path, name).problems[0]

    assert 'the completion may be any of "customer", "intent", "reply"; expected the name' in problem


def test_the_only_control_tag_of_label_studio_is_the_completion(tmp_path: Path) -> None:
    flat = {"text": "a", "id": 1, "tone": "kind", "annotator": 1, "annotation_id": 1, "lead_time": 1.0}

    assert read(tmp_path, json_lines([flat])).dicts == [{"prompt": "a", "completion": "kind"}]


def test_data_with_the_name_of_a_control_tag_is_distinguished_in_tables_of_label_studio(
    tmp_path: Path,
) -> None:
    content = "_data_text,annotation_id,annotator,id,lead_time,text\nthe data,1,me,1,1.5,the answer\n"

    outcome = read(tmp_path, content)

    assert outcome.dicts == [{"prompt": "the data", "completion": "the answer"}]
    assert outcome.unused == ()


# doccano 1.8: data_export/pipeline (formatters.py, factories.py, comments.py) of doccano/doccano.


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "doccano-classification.jsonl",
            [("Terrible customer service.", "negative"), ("Really great transaction.", "positive")],
        ),
        ("doccano-seq2seq.jsonl", [("Hello!", "こんにちは!"), ("Good morning.", "おはようございます。")]),
        (
            "doccano-classification.csv",
            [("Terrible customer service.", "negative"), ("Great, and cheap.", "cheap#positive")],
        ),
    ],
)
def test_doccano(tmp_path: Path, name: str, rows: list[tuple[str, str]]) -> None:
    outcome = read_fixture(tmp_path, name)

    assert (outcome.format, outcome.unused) == ("Doccano", ())
    assert [(row.input[0].content, row.output) for row in outcome.rows] == rows
    assert [problem.split(";")[0] for problem in outcome.problems] == (
        ["row 3: label has no label"] if name == "doccano-classification.jsonl" else []
    )


def test_labels_of_older_doccano_are_read(tmp_path: Path) -> None:
    outcome = read(tmp_path, json_lines([{"id": 1, "text": "a", "labels": ["b"], "meta": {}}]))

    assert (outcome.format, outcome.dicts) == ("Doccano", [{"prompt": "a", "completion": "b"}])


# Preference and KTO: "Dataset formats and types" of the documentation of TRL.

SKY = "What color is the sky?"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": SKY, "chosen": "It is blue.", "rejected": "It is green."},
        {
            "prompt": turns(SKY),
            "chosen": turns("It is blue.", roles=("assistant",)),
            "rejected": turns("It is green.", roles=("assistant",)),
        },
        {"chosen": turns(SKY, "It is blue."), "rejected": turns(SKY, "It is green.")},
        {"prompt": SKY, "chosen": turns(SKY, "It is blue."), "rejected": turns(SKY, "It is green.")},
        {"prompt": turns(SKY), "chosen": turns(SKY, "It is blue."), "rejected": turns(SKY, "It is green.")},
    ],
    ids=["standard", "conversational", "implicit", "prompt beside whole conversations", "prompt in both"],
)
def test_preference(tmp_path: Path, row: dict[str, Any]) -> None:
    outcome = read(tmp_path, json_lines([row]))

    assert (outcome.format, outcome.problems, outcome.unused) == ("Preference", [], ())
    assert outcome.dicts == [{"prompt": SKY, "chosen": "It is blue.", "rejected": "It is green."}]


def test_preference_after_a_longer_conversation(tmp_path: Path) -> None:
    system = {"role": "system", "content": "You help."}
    before = [system, *turns("a", "b", "c")]
    chosen, rejected = (turns(text, roles=("assistant",)) for text in ("d", "e"))

    outcome = read(tmp_path, json_lines([{"prompt": before, "chosen": chosen, "rejected": rejected}]))

    assert outcome.dicts == [{"prompt": before, "chosen": chosen, "rejected": rejected}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": SKY, "completion": "It is green.", "label": False},
        {"prompt": turns(SKY), "completion": turns("It is green.", roles=("assistant",)), "label": False},
    ],
    ids=["standard", "conversational"],
)
def test_kto(tmp_path: Path, row: dict[str, Any]) -> None:
    outcome = read(tmp_path, json_lines([row]))

    assert (outcome.format, outcome.problems, outcome.unused) == ("KTO", [], ())
    assert outcome.dicts == [{"prompt": SKY, "completion": "It is green.", "label": False}]


def test_kto_in_tables_accepts_several_spellings_of_true_and_false(tmp_path: Path) -> None:
    outcome = read(
        tmp_path,
        "prompt,completion,label\n" + "".join(f"a,b,{label}\n" for label in ("True", 0, "1", "false")),
    )

    assert [row.label for row in outcome.rows] == [True, False, True, False]


@pytest.mark.parametrize("name", [path.name for path in FIXTURES.iterdir()])
@pytest.mark.parametrize("packed", [gzipped, zstandarded])
def test_compression_changes_no_row(tmp_path: Path, packed: Any, name: str) -> None:
    recipe = Recipe(names=FieldNames(completion="reply")) if "studio" in name else Recipe()
    plain = read_fixture(tmp_path, name, recipe)

    outcome = read(tmp_path, packed((FIXTURES / name).read_bytes()), recipe)

    assert outcome.items == plain.items
    assert outcome.rows
