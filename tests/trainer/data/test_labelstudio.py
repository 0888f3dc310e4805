# SPDX-License-Identifier: Apache-2.0
"""Label Studio's templates for generative AI, as JSON, JSON_MIN and CSV, without columns in the recipe."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Split
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.row_problems import Code
from tests.trainer.data.reading import Outcome, read, turns

META = {"annotator": 1, "annotation_id": 7, "lead_time": 1.5, "id": 3}
FORMS = ["json", "min", "csv", "tsv"]


def result(name: str, kind: str, **value: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": "x", "type": kind, "value": value}


def task(data: dict[str, Any], *results: Any, **fields: Any) -> dict[str, Any]:
    return {"id": 1, "data": data, "annotations": [{"result": list(results), **fields}]}


def message(role: str, content: str, created: int) -> dict[str, Any]:
    """The region of one message of the tag Chat."""
    return result("chat", "chatmessage", chatmessage={"role": role, "content": content, "createdAt": created})


def pretty(regions: list[dict[str, Any]]) -> Any:
    """The regions of one tag in flat exports, as prettify_result of label-studio-sdk 2.1 writes them."""
    kinds = [region["type"] for region in regions]
    if kinds == ["textarea"]:
        return regions[0]["value"]["text"][0]
    if kinds == ["choices"]:
        choices = regions[0]["value"]["choices"]
        return choices[0] if len(choices) == 1 else regions[0]["value"]
    return [
        region["value"]["chatmessage"] if region["type"] == "chatmessage" else region["value"]
        for region in regions
    ]


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def transcript(messages: list[dict[str, Any]]) -> str:
    return "\n".join(f"{each['role']}: {each['content']}" for each in messages)


def exported(form: str, data: dict[str, Any], *results: dict[str, Any]) -> str:
    """One task as label-studio-sdk 2.1 exports it (converter.py, utils.py, exports/csv2.py)."""
    if form == "json":
        return json.dumps([task(data, *results)])
    answers = {
        name: pretty([each for each in results if each["from_name"] == name])
        for name in dict.fromkeys(each["from_name"] for each in results)
    }
    if form == "min":
        return json.dumps([{**data, **META, **answers}])
    row: dict[str, Any] = {**META}
    for name, value in answers.items():
        row[name] = value if isinstance(value, str) else as_json(value)
        if any(each["type"] == "chatmessage" for each in results if each["from_name"] == name):
            row[f"{name}_transcript"] = transcript(value)
    for name, value in data.items():
        row[f"_data_{name}" if name in answers else name] = (
            as_json(value) if isinstance(value, list | dict) else value
        )
    content = io.StringIO()
    writer = csv.DictWriter(
        content, sorted(row), quoting=csv.QUOTE_NONNUMERIC, delimiter="\t" if form == "tsv" else ","
    )
    writer.writeheader()
    writer.writerow(row)
    return content.getvalue()


def read_export(folder: Path, content: str, **names: str) -> Outcome:
    return read(folder, content, Recipe(names=FieldNames(**names)))


def clean(outcome: Outcome) -> list[dict[str, Any]]:
    assert (outcome.format, outcome.problems, outcome.unused) == ("LabelStudio", [], ())
    return outcome.dicts


@pytest.mark.parametrize("form", FORMS)
def test_the_supervised_template_has_a_prompt_and_a_response(tmp_path: Path, form: str) -> None:
    content = exported(form, {"prompt": "a"}, result("response", "textarea", text=["b"]))

    assert clean(read_export(tmp_path, content)) == [{"prompt": "a", "completion": "b"}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "messages",
    [
        turns("a", "b", "c"),
        [{"author": "Human", "text": "a"}, {"author": "Bot", "text": "b"}, {"author": "Human", "text": "c"}],
    ],
    ids=["messages", "paragraphs"],
)
def test_the_chat_template_has_its_history_before_the_response(
    tmp_path: Path, messages: Any, form: str
) -> None:
    content = exported(form, {"messages": messages}, result("response", "textarea", text=["d"]))

    (row,) = clean(read_export(tmp_path, content))
    assert row["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]


def test_conversations_in_tables_of_older_releases_are_python_literals(tmp_path: Path) -> None:
    content = (
        "messages,annotation_id,annotator,id,lead_time,response\n"
        "\"[{'role': 'user', 'content': 'a'}]\",7,1,3,1.5,b\n"
    )

    assert clean(read_export(tmp_path, content)) == [{"prompt": "a", "completion": "b"}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("field", ["chat", "dialogue"], ids=["the tag's name", "another name"])
def test_the_tag_chat_is_a_conversation_in_the_order_of_its_times(
    tmp_path: Path, field: str, form: str
) -> None:
    regions = [message("assistant", "b", 2), message("user", "a", 1)]

    (row,) = clean(read_export(tmp_path, exported(form, {field: []}, *regions)))
    assert row == {"messages": turns("a", "b")}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("repeats", [True, False], ids=["all turns", "new turns"])
def test_the_tag_chat_continues_the_conversation_of_the_task(
    tmp_path: Path, repeats: bool, form: str
) -> None:
    regions = [message("user", "a", 1), message("assistant", "b", 2)][0 if repeats else 1 :]

    (row,) = clean(read_export(tmp_path, exported(form, {"messages": turns("a")}, *regions)))
    assert row == {"messages": turns("a", "b")}


@pytest.mark.parametrize("form", ["json", "csv", "tsv"])
def test_the_conversation_of_the_task_may_have_the_name_of_the_tag_chat(tmp_path: Path, form: str) -> None:
    regions = [message("user", "c", 1), message("assistant", "d", 2)]

    (row,) = clean(read_export(tmp_path, exported(form, {"chat": turns("a", "b")}, *regions)))
    assert [(each["content"], each.get("weight")) for each in row["messages"]] == [
        ("a", None),
        ("b", 0),
        ("c", None),
        ("d", None),
    ]


def test_a_chat_without_times_is_found_if_it_is_the_only_answer(tmp_path: Path) -> None:
    content = json.dumps([{"chat": turns("a", "b"), **META}])

    assert clean(read_export(tmp_path, content)) == [{"messages": turns("a", "b")}]
    assert clean(read_export(tmp_path, content, completion="chat")) == [{"messages": turns("a", "b")}]


def test_a_conversation_of_the_data_with_times_as_texts_is_not_the_answer(tmp_path: Path) -> None:
    messages = [{**turn, "createdAt": "2026-01-01T00:00:00Z"} for turn in turns("a", "b", "c")]
    content = exported("min", {"messages": messages}, result("reply", "textarea", text=["d"]))

    assert clean(read_export(tmp_path, content))[0]["messages"][-1] == {"role": "assistant", "content": "d"}


def test_of_two_chats_the_user_names_one(tmp_path: Path) -> None:
    chats = {
        name: [{**turn, "createdAt": 1} for turn in turns("a", answer)]
        for name, answer in (("one", "b"), ("two", "c"))
    }
    content = json.dumps([{**chats, **META}])

    assert 'the completion may be any of "one", "two"' in read_export(tmp_path, content).problems[0]
    assert read_export(tmp_path, content, completion="two").dicts == [{"messages": turns("a", "c")}]


def test_annotations_with_the_same_messages_at_other_times_agree(tmp_path: Path) -> None:
    regions = [[message("user", "a", time), message("assistant", "b", time + 1)] for time in (1, 7)]
    content = json.dumps([{"data": {"chat": []}, "annotations": [{"result": each} for each in regions]}])

    assert clean(read_export(tmp_path, content)) == [{"messages": turns("a", "b")}]


QUESTION, REPLY = (
    result(name, "textarea", text=[text]) for name, text in (("prompt", "c"), ("response", "d"))
)
"""The text areas of the template for chats with a model, whose history is `messages`."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "names",
    [{}, {"completion": "response"}, {"prompt": "prompt", "completion": "response"}],
    ids=["no names", "the response", "both"],
)
def test_text_areas_for_prompt_and_response_continue_the_conversation(
    tmp_path: Path, names: dict[str, str], form: str
) -> None:
    content = exported(form, {"messages": turns("a", "b")}, QUESTION, REPLY)

    (row,) = clean(read_export(tmp_path, content, **names))
    assert [(each["content"], each.get("weight")) for each in row["messages"]] == [
        ("a", None),
        ("b", 0),
        ("c", None),
        ("d", None),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_text_areas_for_prompt_and_response_can_begin_a_conversation(tmp_path: Path, form: str) -> None:
    content = exported(form, {"messages": []}, QUESTION, REPLY)

    assert clean(read_export(tmp_path, content)) == [{"prompt": "c", "completion": "d"}]


def test_text_areas_of_other_names_continue_the_conversation_if_they_are_named(tmp_path: Path) -> None:
    areas = [{**QUESTION, "from_name": "ask"}, {**REPLY, "from_name": "say"}]
    content = exported("json", {"messages": turns("a", "b")}, *areas)

    (row,) = clean(read_export(tmp_path, content, prompt="ask", completion="say"))
    assert [each["content"] for each in row["messages"]] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("form", ["min", "csv", "tsv"])
def test_flat_exports_drop_no_conversation_either(tmp_path: Path, form: str) -> None:
    data = {"note": "a", "messages": turns("x", "y")}
    content = exported(form, data, result("reply", "textarea", text=["b"]))

    (problem,) = read_export(tmp_path, content, prompt="note", completion="reply").problems
    assert 'note would be read without the conversation in "messages"' in problem


@pytest.mark.parametrize("form", FORMS)
def test_several_choices_are_one_answer_and_a_warning_says_so(tmp_path: Path, form: str) -> None:
    source = tmp_path / "rows"
    source.write_text(exported(form, {"text": "a"}, result("label", "choices", choices=["b", "c"])))
    (tmp_path / "out").mkdir()

    prepared = prepare(
        [SourceFile(source)],
        Recipe(division=Split(validation=0, test=0)),
        tmp_path / "out",
    )

    assert json.loads((tmp_path / "out" / "train.jsonl").read_text()) == {"prompt": "a", "completion": "b, c"}
    (problem,) = prepared.examples[Code.COMBINED_LABELS]
    assert problem.issue.what.startswith('1 row has several choices, joined by ", " as one answer')
    assert 'choice="single"' in problem.issue.fix


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("selected", "chosen", "rejected"), [("left", "b", "c"), ("right", "c", "b")])
def test_the_pairwise_template_is_a_preference(
    tmp_path: Path, selected: str, chosen: str, rejected: str, form: str
) -> None:
    data = {"prompt": "a", "answer1": "b", "answer2": "c"}
    content = exported(form, data, result("pw", "pairwise", selected=selected))

    assert clean(read_export(tmp_path, content)) == [{"prompt": "a", "chosen": chosen, "rejected": rejected}]


def test_the_answers_of_a_pairwise_task_can_be_named(tmp_path: Path) -> None:
    data = {"prompt": "a", "one": "b", "two": "c"}
    content = exported("json", data, result("pw", "pairwise", selected="left"))

    assert "name the left one in columns.chosen" in read_export(tmp_path, content).problems[0]
    named = read_export(tmp_path, content, chosen="one", rejected="two")
    assert named.dicts == [{"prompt": "a", "chosen": "b", "rejected": "c"}]


def test_a_history_is_never_dropped_silently(tmp_path: Path) -> None:
    data = {"prompt": "a", "messages": turns("x", "y")}
    content = exported("json", data, result("response", "textarea", text=["b"]))

    assert "the prompt may be any of" in read_export(tmp_path, content).problems[0]
    assert "without the conversation" in read_export(tmp_path, content, prompt="prompt").problems[0]


CHOICE = result("label", "choices", choices=["b"])
OTHER = result("label", "choices", choices=["c"])


def tasks(*annotations: Any, **fields: Any) -> str:
    return json.dumps([{"data": {"text": "a"}, "annotations": list(annotations), **fields}])


@pytest.mark.parametrize(
    "annotations",
    [
        [{"result": [CHOICE]}, {"result": [CHOICE]}],
        [{"result": [OTHER]}, {"result": [CHOICE], "ground_truth": True}],
        [{"result": [OTHER], "was_cancelled": True}, {"result": [CHOICE]}],
        [{"result": []}, {"result": [CHOICE]}],
    ],
    ids=["agree", "ground truth", "cancelled", "empty"],
)
def test_several_annotations_count_if_they_are_unambiguous(tmp_path: Path, annotations: Any) -> None:
    assert clean(read_export(tmp_path, tasks(*annotations))) == [{"prompt": "a", "completion": "b"}]


def test_annotations_that_differ_require_a_decision_of_the_user(tmp_path: Path) -> None:
    content = tasks({"result": [CHOICE]}, {"result": [OTHER]})

    assert read_export(tmp_path, content).problems[0].startswith("row 1: has 2 annotations that differ")


@pytest.mark.parametrize("fields", [{}, {"annotations": []}], ids=["no annotations", "none yet"])
def test_predictions_are_not_annotations(tmp_path: Path, fields: Any) -> None:
    content = json.dumps([{"data": {"text": "a"}, "predictions": [{"result": [CHOICE]}], **fields}])

    assert "has predictions, but no annotation" in read_export(tmp_path, content).problems[0]


@pytest.mark.parametrize("value", ["none", None], ids=str)
def test_a_pairwise_task_without_a_choice_is_reported(tmp_path: Path, value: Any) -> None:
    data = {"prompt": "a", "answer1": "b", "answer2": "c"}
    content = exported("json", data, result("pw", "pairwise", selected=value))

    assert len(read_export(tmp_path, content).problems) == 1


def test_exports_before_version_1_have_completions_for_annotations(tmp_path: Path) -> None:
    content = json.dumps([{"id": 1, "data": {"text": "a"}, "completions": [{"result": [CHOICE]}]}])

    assert clean(read_export(tmp_path, content)) == [{"prompt": "a", "completion": "b"}]
