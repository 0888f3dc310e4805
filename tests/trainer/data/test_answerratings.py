# SPDX-License-Identifier: Apache-2.0
"""Labels that rate an answer: a rejected answer is never learned."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.row_problems import Code
from tests.trainer.data.reading import Outcome, chat, json_lines, pairs, parquet_bytes, read

ALPACA = {"instruction": "a", "output": "b"}
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{**pair, "label": label} for pair, label in zip(pairs(len(labels)), labels, strict=True)]


def read_json(folder: Path, rows: list[dict[str, Any]], **recipe: Any) -> Outcome:
    return read(folder, json_lines(rows), Recipe(**recipe))


@pytest.mark.parametrize(
    "labels",
    [("true", "false"), ("True", "FALSE"), ("1", "0"), (1, 0), (1.0, 0.0), (True, False)],
    ids=str,
)
def test_true_and_false_labels_are_labels_of_kto_in_json_too(tmp_path: Path, labels: tuple[Any, Any]) -> None:
    outcome = read_json(tmp_path, labelled(*labels))

    assert (outcome.format, outcome.problems) == ("KTO", [])
    assert [row.label for row in outcome.rows] == [True, False]


@pytest.mark.parametrize(
    "rows",
    [
        labelled("good", "bad"),
        labelled("yes", "no"),
        labelled(1, -1, -1),
        labelled(0, 1, 2, 3, 4),
        labelled("true", "billing", "dispatch"),
        [{**row, "kto_tag": True} for row in pairs(2)],
        [{**ALPACA, "label": False}],
        [{**SHAREGPT, "kto_tag": "false"}],
        [{**chat("a", "b"), "label": 0}],
    ],
    ids=range(9),
)
def test_a_label_that_may_rate_the_answer_requires_the_format(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    outcome = read_json(tmp_path, rows)

    assert (outcome.format, outcome.rows, outcome.codes) == (None, [], [Code.FILE_UNKNOWN])
    assert "which may rate the answer as good or bad" in outcome.problems[0]
    assert "set format: KTO" in outcome.problems[0]


@pytest.mark.parametrize("value", ["thumbs_down", "👎", "reject", "Rejected", "undesirable", "downvote"])
@pytest.mark.parametrize("row", [*pairs(1), ALPACA, SHAREGPT, chat("a", "b")], ids=range(4))
def test_a_verdict_in_any_field_that_is_not_read_requires_the_format(
    tmp_path: Path, row: dict[str, Any], value: str
) -> None:
    outcome = read_json(tmp_path, [{**row, "state": value}])

    assert (outcome.format, outcome.rows, outcome.codes) == (None, [], [Code.FILE_UNKNOWN])
    assert f"state is '{value}', which may rate the answer as good or bad" in outcome.problems[0]
    assert "to learn every answer" in outcome.problems[0]


@pytest.mark.parametrize("value", [False, "bad", "yes", 0, -1], ids=str)
@pytest.mark.parametrize("name", ["feedback", "rating", "Vote"])
def test_a_field_named_as_a_rating_is_read_like_a_label(tmp_path: Path, name: str, value: Any) -> None:
    outcome = read_json(tmp_path, [{**pairs(1)[0], name: value}])

    assert (outcome.rows, outcome.codes) == ([], [Code.FILE_UNKNOWN])


def test_the_message_names_the_format_that_learns_every_answer(tmp_path: Path) -> None:
    rows = [{**pairs(1)[0], "feedback": "thumbs_down"}]

    assert "set format: PromptCompletion to learn every answer" in read_json(tmp_path, rows).problems[0]
    assert len(read_json(tmp_path, rows, format="PromptCompletion").rows) == 1


@pytest.mark.parametrize(
    "fields",
    [{"urgent": "yes"}, {"open": True}, {"priority": 1}, {"sex": "f"}, {"remark": "rejected by mail"}],
    ids=str,
)
def test_values_that_describe_the_row_are_not_ratings(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert len(read_json(tmp_path, [{**pairs(1)[0], **fields}]).rows) == 1


def test_a_verdict_that_is_the_answer_or_part_of_the_prompt_is_not_a_rating(tmp_path: Path) -> None:
    rows = [{"claim": "a", "state": "open", "decision": "rejected"}]

    completion = FieldNames(prompt="claim", completion="decision")
    assert len(read_json(tmp_path, rows, names=completion).rows) == 1
    template = FieldNames(template="{claim} {decision}", completion="state")
    assert len(read_json(tmp_path, rows, names=template).rows) == 1


# Prodigy: every example has hashes and the annotator's decision ("Annotation task formats" of its manual).


def examples(*decisions: str) -> list[dict[str, Any]]:
    return [
        {"text": f"late {number}", "label": "complaint", "answer": decision, "_task_hash": number}
        for number, decision in enumerate(decisions)
    ]


def test_only_accepted_examples_of_prodigy_are_learned(tmp_path: Path) -> None:
    outcome = read_json(
        tmp_path,
        examples("reject", "accept", "ignore"),
        names=FieldNames(prompt="text", completion="label"),
    )

    assert [row.input[0].content for row in outcome.rows] == ["late 1"]
    assert outcome.unused == ("_task_hash",)
    assert [problem.split(";")[0] for problem in outcome.problems] == [
        "row 1: answer is 'reject': the annotator rejected the example as wrong in Prodigy",
        "row 3: answer is 'ignore': the annotator skipped the example in Prodigy",
    ]


def test_a_forced_format_learns_no_rejected_example_of_prodigy_either(tmp_path: Path) -> None:
    names = FieldNames(prompt="text", completion="label")

    outcome = read_json(tmp_path, examples("accept", "reject"), names=names, format="PromptCompletion")

    assert (len(outcome.rows), outcome.codes) == (1, [Code.FIELD_VALUE])


def test_the_decision_in_prodigy_can_be_what_is_learned(tmp_path: Path) -> None:
    names = FieldNames(prompt="text", completion="answer")

    outcome = read_json(tmp_path, examples("accept", "reject"), names=names)

    assert [row.output for row in outcome.rows] == ["accept", "reject"]


def test_the_forced_format_decides_what_a_label_means(tmp_path: Path) -> None:
    rows = labelled(0, 1, 2)

    outcome = read_json(tmp_path, rows, format="PromptCompletion")

    assert (outcome.problems, len(outcome.rows)) == ([], 3)
    assert read_json(tmp_path, rows, format="KTO").codes == [Code.FIELD_TYPE]


def test_class_labels_are_not_ratings(tmp_path: Path) -> None:
    outcome = read_json(tmp_path, labelled("billing", "dispatch", 7, None, 0.5))

    assert (outcome.format, outcome.problems, len(outcome.rows)) == ("PromptCompletion", [], 5)


def test_a_label_that_is_the_answer_is_not_a_rating(tmp_path: Path) -> None:
    rows = [{"prompt": f"is it {number}?", "label": "true"} for number in range(3)]

    outcome = read_json(tmp_path, rows, names=FieldNames(completion="label"))

    assert (outcome.format, outcome.problems, len(outcome.rows)) == ("PromptCompletion", [], 3)


def test_a_rating_after_the_sampled_rows_is_rejected(tmp_path: Path) -> None:
    outcome = read_json(tmp_path, [*pairs(200), *labelled("false")])

    assert (outcome.format, len(outcome.rows), outcome.codes) == (
        "PromptCompletion",
        200,
        [Code.FORMATS_MIXED],
    )
    assert outcome.problems[0].startswith("row 201: label is 'false', which may rate the answer")


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ("prompt,completion,label\na,b,1\nc,d,2\ne,f,3\n", None),
        ("prompt,completion,label\na,b,1\nc,d,0\n", "KTO"),
        ("prompt,completion,label\na,b,good\n", None),
        (parquet_bytes(labelled(1, 0)), "KTO"),
    ],
    ids=range(4),
)
def test_tables_follow_the_same_rule(tmp_path: Path, content: str | bytes, form: DataFormat | None) -> None:
    assert read(tmp_path, content, Recipe()).format == form
