# SPDX-License-Identifier: Apache-2.0
"""Label Studio's templates for generative AI, as JSON, JSON_MIN and CSV, without columns in the recipe."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.vocabulary import RULE_VERSION
from finetune_trainer.data.options import FieldNames, Recipe
from tests.trainer.data.reading import Outcome, read, turns

NEWEST = Split(rule_version=RULE_VERSION)
META = {"annotator": 1, "annotation_id": 7, "lead_time": 1.5, "id": 3}
FORMS = ["json", "min", "csv"]


def result(name: str, kind: str, **value: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": "x", "type": kind, "value": value}


def task(data: dict[str, Any], *results: Any, **fields: Any) -> dict[str, Any]:
    return {"id": 1, "data": data, "annotations": [{"result": list(results), **fields}]}


def exported(form: str, data: dict[str, Any], answer: dict[str, Any]) -> str:
    """One task as Label Studio exports it. In CSV, lists of the data are Python literals."""
    name, kind, value = answer["from_name"], answer["type"], answer["value"]
    if form == "json":
        return json.dumps([task(data, answer)])
    plain: Any = value["text"][0] if kind == "textarea" else [value]
    if form == "min":
        return json.dumps([{**data, **META, name: plain}])
    content = io.StringIO()
    row = {**data, **META, name: plain if isinstance(plain, str) else json.dumps(plain)}
    writer = csv.DictWriter(content, list(row))
    writer.writeheader()
    writer.writerow(row)
    return content.getvalue()


def read_newest(folder: Path, content: str, **names: str) -> Outcome:
    return read(folder, content, Recipe(names=FieldNames(**names), division=NEWEST))


def clean(outcome: Outcome) -> list[dict[str, Any]]:
    assert (outcome.format, outcome.problems, outcome.unused) == ("LabelStudio", [], ())
    return outcome.dicts


@pytest.mark.parametrize("form", FORMS)
def test_the_supervised_template_has_a_prompt_and_a_response(tmp_path: Path, form: str) -> None:
    content = exported(form, {"prompt": "a"}, result("response", "textarea", text=["b"]))

    assert clean(read_newest(tmp_path, content)) == [{"prompt": "a", "completion": "b"}]


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

    (row,) = clean(read_newest(tmp_path, content))
    assert row["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("repeats", [True, False], ids=["all turns", "new turns"])
def test_the_tag_chat_continues_the_conversation_of_the_task(
    tmp_path: Path, repeats: bool, form: str
) -> None:
    new = turns("a", "b")[0 if repeats else 1 :]
    answer = result("chat", "chatmessages", chatmessages=[{**turn, "createdAt": 1} for turn in new])

    (row,) = clean(read_newest(tmp_path, exported(form, {"messages": turns("a")}, answer)))
    assert row == {"messages": turns("a", "b")}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("selected", "chosen", "rejected"), [("left", "b", "c"), ("right", "c", "b")])
def test_the_pairwise_template_is_a_preference(
    tmp_path: Path, selected: str, chosen: str, rejected: str, form: str
) -> None:
    data = {"prompt": "a", "answer1": "b", "answer2": "c"}
    content = exported(form, data, result("pw", "pairwise", selected=selected))

    assert clean(read_newest(tmp_path, content)) == [{"prompt": "a", "chosen": chosen, "rejected": rejected}]


def test_the_answers_of_a_pairwise_task_can_be_named(tmp_path: Path) -> None:
    data = {"prompt": "a", "one": "b", "two": "c"}
    content = exported("json", data, result("pw", "pairwise", selected="left"))

    assert "name the left one in columns.chosen" in read_newest(tmp_path, content).problems[0]
    named = read_newest(tmp_path, content, chosen="one", rejected="two")
    assert named.dicts == [{"prompt": "a", "chosen": "b", "rejected": "c"}]


def test_a_history_is_never_dropped_silently(tmp_path: Path) -> None:
    data = {"prompt": "a", "messages": turns("x", "y")}
    content = exported("json", data, result("response", "textarea", text=["b"]))

    assert "the prompt may be any of" in read_newest(tmp_path, content).problems[0]
    assert "without the conversation" in read_newest(tmp_path, content, prompt="prompt").problems[0]


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
    assert clean(read_newest(tmp_path, tasks(*annotations))) == [{"prompt": "a", "completion": "b"}]


def test_annotations_that_differ_require_a_decision_of_the_user(tmp_path: Path) -> None:
    content = tasks({"result": [CHOICE]}, {"result": [OTHER]})

    assert read_newest(tmp_path, content).problems[0].startswith("row 1: has 2 annotations that differ")
    assert read(tmp_path, content).dicts == [{"prompt": "a", "completion": "b"}], "by the first rule"


@pytest.mark.parametrize("fields", [{}, {"annotations": []}], ids=["no annotations", "none yet"])
def test_predictions_are_not_annotations(tmp_path: Path, fields: Any) -> None:
    content = json.dumps([{"data": {"text": "a"}, "predictions": [{"result": [CHOICE]}], **fields}])

    assert "has predictions, but no annotation" in read_newest(tmp_path, content).problems[0]


@pytest.mark.parametrize("value", ["none", None], ids=str)
def test_a_pairwise_task_without_a_choice_is_reported(tmp_path: Path, value: Any) -> None:
    data = {"prompt": "a", "answer1": "b", "answer2": "c"}
    content = exported("json", data, result("pw", "pairwise", selected=value))

    assert len(read_newest(tmp_path, content).problems) == 1


def test_exports_before_version_1_have_completions_for_annotations(tmp_path: Path) -> None:
    content = json.dumps([{"id": 1, "data": {"text": "a"}, "completions": [{"result": [CHOICE]}]}])

    assert clean(read_newest(tmp_path, content)) == [{"prompt": "a", "completion": "b"}]
