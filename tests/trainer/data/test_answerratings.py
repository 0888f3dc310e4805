# SPDX-License-Identifier: Apache-2.0
"""Labels that rate an answer: a rejected answer is never learned."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.vocabulary import RULE_VERSION, DataFormat
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.options import FieldNames, Recipe
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.rowproblems import Code
from tests.trainer.data.reading import Outcome, chat, json_lines, pairs, parquet_bytes, read

NEWEST = Split(rule_version=RULE_VERSION)
ALPACA = {"instruction": "a", "output": "b"}
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{**pair, "label": label} for pair, label in zip(pairs(len(labels)), labels, strict=True)]


def read_json(folder: Path, rows: list[dict[str, Any]], **recipe: Any) -> Outcome:
    return read(folder, json_lines(rows), Recipe(division=NEWEST, **recipe))


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
    assert read(tmp_path, content, Recipe(division=NEWEST)).format == form


def test_rule_version_1_reads_as_before_and_reports_what_a_newer_version_would_read(
    tmp_path: Path,
) -> None:
    source = tmp_path / "rows"
    source.write_text(json_lines(labelled("true", "false")))
    (tmp_path / "out").mkdir()

    prepared = prepare([SourceFile(source)], Recipe(), tmp_path / "out")

    assert (prepared.format, prepared.kept_rows) == ("PromptCompletion", 2)
    (problem,) = prepared.examples[Code.LABELS_NOT_READ]
    assert "2 rows have a label that may rate the answer as good or bad" in problem.issue.what
    assert "split.ruleVersion: 2" in problem.issue.fix
