# SPDX-License-Identifier: Apache-2.0
"""The report as JSON with a schema, and as a self-contained page."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from finetune_trainer.contract.dataset import Checks, Cleaning, Split
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.result import (
    Bucket,
    CharacterLengths,
    DuplicatePair,
    FileRecord,
    Label,
    Prepared,
    RowChanges,
    RowProblem,
    Statistics,
)
from finetune_trainer.data.row_problems import Code, Issue, RowPosition, Severity
from finetune_trainer.report.document import (
    MAX_LISTED_PROBLEMS,
    Document,
    compact,
    document,
    encode,
    histogram,
    nice_ceiling,
)
from finetune_trainer.report.html_page import page, token_page
from finetune_trainer.report.verdicts import HEADLINES, verdict

DOCS = Path(__file__).parents[2] / "docs"
DIGEST = "sha256:" + "5e" * 32


def problem(
    row: int | None,
    what: str = "completion is empty",
    code: Code = Code.FIELD_EMPTY,
    severity: Severity = "error",
    file: str | None = None,
) -> RowProblem:
    issue = Issue(code, what, "text", "fill completion in, or remove the row", "completion", severity)
    return RowProblem(RowPosition(file, row, row), issue)


def prepared(*problems: RowProblem, **facts: Any) -> Prepared:
    """A hundred good rows, and the rows of the problems."""
    errors = sum(problem.issue.severity == "error" for problem in problems)
    codes = [problem.issue.code for problem in problems]
    lengths = CharacterLengths(
        mean=12.5, median=11.0, p95=30.0, max=39, histogram=(Bucket(0, 10, 40), Bucket(10, 40, 60))
    )
    usual: dict[str, Any] = {
        "recipe": Recipe(),
        "format": "PromptCompletion",
        "files": (FileRecord(name="rows.jsonl", bytes=4096, sha256="ab" * 32),),
        "rows": 100 + errors,
        "invalid_rows": errors,
        "broken_files": 0,
        "split_rows": {"train": 80, "validation": 11, "test": 9},
        "problems": problems,
        "error_count": errors,
        "warning_count": len(problems) - errors,
        "counts": {code: codes.count(code) for code in codes},
        "examples": {
            code: tuple(problem for problem in problems if problem.issue.code == code)[:3] for code in codes
        },
        "statistics": Statistics(prompt_characters=lengths, distinct_completions=60),
    }
    return Prepared(**(usual | facts))


def everything() -> Prepared:
    """A preparation with findings of every kind."""
    base = prepared(
        problem(7, file="a.jsonl"),
        problem(9, 'prompt has an e-mail address: "a <b>"', Code.EMAIL_ADDRESS, "warning", "a.jsonl"),
        problem(None, "100 rows are good", Code.FEW_ROWS, "warning"),
        recipe=Recipe(
            format="CSV",
            names=FieldNames(completion="answer", template="{subject}\n{body}"),
            division=Split(group_by="customer"),
            cleaning=Cleaning(near_duplicates="Remove"),
            checks=Checks(email_addresses="Warn", phone_numbers="Fail", phone_region="DE"),
        ),
        duplicate_pairs=(
            DuplicatePair("Exact", RowPosition("a.jsonl", 3, 3), RowPosition("a.jsonl", 1, 1)),
            DuplicatePair("Near", RowPosition("a.jsonl", 4, 4), RowPosition("a.jsonl", 1, 1)),
            DuplicatePair("Leak", RowPosition("a.jsonl", 5, 5), RowPosition("a.jsonl", 2, 2)),
            DuplicatePair("Conflict", RowPosition("a.jsonl", 6, 6), RowPosition("a.jsonl", 2, 2)),
        ),
        unused_fields=("id", "created_at"),
        difference=RowChanges(previous=DIGEST, added=1234, removed=5, changed=6),
    )
    return replace(
        base,
        statistics=replace(
            base.statistics,
            duplicate_rows=1,
            near_duplicate_rows=1,
            leaked_rows=1,
            conflicting_rows=1,
            redacted_rows=2,
            labels=(
                Label("billing", {"train": 60, "validation": 5, "test": 9}),
                Label("<script>", {"train": 20, "validation": 6}),
            ),
        ),
    )


TOKENS = {
    "version": 1,
    "baseModel": "tiny",
    "maxSequenceLength": 64,
    "rows": 100,
    "cutRows": 4,
    "droppedRows": 0,
    "lostAnswers": 1,
    "learnedTurns": 120,
    "unlearnedTurns": 0,
    "lengths": {
        "mean": 30.0,
        "median": 28.0,
        "p95": 60.0,
        "max": 90,
        "histogram": [{"start": 0, "end": 50, "rows": 90}, {"start": 50, "end": 100, "rows": 10}],
    },
    "longest": [{"split": "train", "row": 12, "tokens": 90}],
}


def strict(schema: Any) -> Any:
    """The schema, without additional properties."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {name: strict(part) for name, part in schema.items()} | closed


@pytest.mark.parametrize("found", [prepared(), everything(), prepared(format=None, rows=0, split_rows={})])
def test_a_report_has_exactly_the_fields_of_the_schema(found: Prepared) -> None:
    schema = json.loads((DOCS / "report.schema.json").read_text())
    report = document(found, source="rows", digest=DIGEST, split_digests={"train": DIGEST}, problem_log="log")

    Draft202012Validator.check_schema(schema)
    errors = [error.message for error in Draft202012Validator(strict(schema)).iter_errors(report)]

    assert errors == []


def test_every_field_of_the_report_is_in_its_documentation() -> None:
    text = (DOCS / "report.md").read_text()

    assert [field for field in document(everything()) if f"`{field}" not in text] == []


def test_a_problem_has_its_position_what_is_wrong_and_what_to_do() -> None:
    assert document(prepared(problem(7, file="a.jsonl")))["problems"] == [
        {
            "source": None,
            "file": "a.jsonl",
            "line": 7,
            "record": 7,
            "column": "completion",
            "severity": "error",
            "code": "FieldEmpty",
            "message": "completion is empty",
            "expected": "text",
            "hint": "fill completion in, or remove the row",
        }
    ]


def test_kinds_of_problems_are_sorted_errors_first_then_by_count() -> None:
    found = prepared(
        *(problem(row, code=Code.SECRET, severity="warning") for row in range(1, 6)),
        problem(6, code=Code.SYNTAX),
        problem(7),
        problem(8),
    )

    groups = document(found)["problemsByCode"]

    assert [(group["code"], group["severity"], group["count"]) for group in groups] == [
        ("FieldEmpty", "error", 2),
        ("Syntax", "error", 1),
        ("Secret", "warning", 5),
    ]
    assert len(groups[2]["examples"]) == 3


def test_a_report_lists_the_first_problems_and_counts_the_rest() -> None:
    report = document(prepared(*(problem(row) for row in range(1, MAX_LISTED_PROBLEMS + 6))))

    assert len(report["problems"]) == MAX_LISTED_PROBLEMS
    assert report["problemsOmitted"] == 5
    assert report["errorCount"] == MAX_LISTED_PROBLEMS + 5


def test_problems_of_all_rows_are_listed_however_many_rows_are_bad() -> None:
    found = prepared(
        *(problem(row) for row in range(1, MAX_LISTED_PROBLEMS + 1)),
        problem(None, "99 rows are good", Code.FEW_ROWS, "warning"),
    )

    listed = document(found)["problems"]

    assert len(listed) == MAX_LISTED_PROBLEMS
    assert listed[-1]["code"] == "FewRows"


def test_equal_preparations_have_equal_reports() -> None:
    assert encode(document(everything())) == encode(document(everything()))


def test_characters_that_utf8_cannot_encode_or_that_control_a_terminal_are_escaped() -> None:
    found = prepared(
        problem(1, "has \ud83d and \x1b[31m and \x00 and \u202e and ü"),
        statistics=Statistics(labels=(Label("\udc80", {"train": 80}),)),
    )

    report = json.loads(encode(document(found)))

    assert report["problems"][0]["message"] == "has \\ud83d and \\x1b[31m and \\x00 and \\u202e and ü"
    assert report["statistics"]["labels"][0]["completion"] == "\\udc80"
    assert page(report).encode()


def test_long_texts_from_rows_are_truncated() -> None:
    found = prepared(
        problem(1, "a" * 5000), statistics=Statistics(labels=(Label("b" * 5000, {"train": 80}),))
    )

    report = document(found)

    assert report["problems"][0]["message"] == "a" * 999 + "…"
    assert report["statistics"]["labels"][0]["completion"] == "b" * 999 + "…"


VERDICTS: list[tuple[Prepared, str, str]] = [
    (prepared(), "good", "Ready to train: 100 rows"),
    (prepared(problem(1, severity="warning")), "warning", "Ready to train: 100 rows"),
    (prepared(problem(1)), "error", "1 of 101 rows cannot be used"),
    (prepared(problem(1), rows=23_600, invalid_rows=1180), "error", "1,180 of 23,600 rows cannot be used"),
    (
        prepared(
            problem(None, "the file is PDF", Code.FILE_UNKNOWN),
            rows=0,
            invalid_rows=0,
            broken_files=1,
            split_rows={},
        ),
        "error",
        "The source cannot be read",
    ),
    (
        prepared(problem(60, "ends early", Code.FILE_ENDS_EARLY), invalid_rows=0, broken_files=1),
        "error",
        "The file cannot be read to the end",
    ),
    (
        prepared(problem(None, "no rows", Code.FILE_EMPTY), rows=0, invalid_rows=0, split_rows={}),
        "error",
        "There are no rows",
    ),
    (
        prepared(
            problem(None, "all rows are held out", Code.NO_TRAINING_ROWS),
            rows=3,
            invalid_rows=0,
            split_rows={"test": 3},
        ),
        "error",
        "No rows to train on",
    ),
]


@pytest.mark.parametrize(("found", "level", "title"), VERDICTS)
def test_the_verdict_is_at_the_top_of_the_page(found: Prepared, level: str, title: str) -> None:
    report = document(found)
    text = page(report)

    assert (verdict(report).level, verdict(report).title) == (level, title)
    assert f'<header class="{level}">' in text
    assert f"<h1>{title}</h1>" in text


def test_every_kind_of_problem_has_a_headline() -> None:
    assert set(HEADLINES) == set(Code)


class Outline(HTMLParser):
    """Checks that elements are closed in order, and collects the addresses that a page loads."""

    VOID = frozenset({"meta", "link", "line", "rect", "br", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())


@pytest.mark.parametrize("text", [page(document(everything())), token_page(TOKENS)])
def test_a_page_is_well_formed_and_loads_and_runs_nothing(text: str) -> None:
    outline = Outline(text)

    assert outline.open == []
    assert outline.loads == []
    assert "script" not in outline.tags
    assert "url(" not in text


def test_texts_from_rows_are_escaped() -> None:
    text = page(document(everything(), source="<img src=x>"))

    assert "&lt;script&gt;" in text
    assert "a &lt;b&gt;" in text
    assert "<img" not in text


def test_the_page_has_a_section_for_every_finding() -> None:
    text = page(document(everything(), digest=DIGEST))

    assert Outline(text).headings == [
        "Errors",
        "Warnings",
        "Lengths",
        "Answers",
        "Removed and similar rows",
        "Changes since the previous version",
        "Preparation",
    ]
    assert "Fields are empty" in text
    assert "a.jsonl, row 7" in text
    assert "<dd>1,234</dd>" in text
    assert "<dd>id, created_at</dd>" in text
    assert "10 to 39 characters: 60 rows" in text
    assert DIGEST in text


def test_the_page_omits_empty_sections() -> None:
    text = page(document(prepared(statistics=Statistics())))

    assert Outline(text).headings == ["Preparation"]
    assert "<details>" not in text
    assert "None" not in text


def test_the_page_has_all_listed_problems_in_a_table() -> None:
    report = document(prepared(*(problem(row) for row in range(1, 31))))

    text = page(report)

    assert "All 30 problems" in text
    assert text.count('<tr class="error">') == 30


def test_the_page_counts_the_problems_that_are_not_listed() -> None:
    found = replace(prepared(*(problem(row) for row in range(1, 31))), error_count=5000)

    text = page(document(found, problem_log="pvc://artifacts/problems.jsonl"))

    assert "The first 30 of 5,000 problems" in text
    assert "pvc://artifacts/problems.jsonl" in text


def test_the_page_of_tokens_marks_the_length_limit() -> None:
    text = token_page(TOKENS)

    assert "<h1>4 of 100 rows are truncated to 64 tokens</h1>" in text
    assert "In 1 row, no part of the answer is left." in text
    assert text.count('class="bar beyond"') == 1
    assert '<line class="mark" x1="247.0"' in text
    assert '<td>train</td><td class="figure">12</td><td class="figure">90</td>' in text


def test_the_page_of_tokens_marks_nothing_if_all_rows_fit() -> None:
    text = token_page({**TOKENS, "maxSequenceLength": 128, "cutRows": 0, "lostAnswers": 0, "longest": []})

    assert "<h1>All rows fit into 128 tokens</h1>" in text
    assert 'class="mark"' not in text
    assert "Longest rows" not in text


def test_the_page_of_tokens_counts_rows_that_are_not_used() -> None:
    text = token_page({**TOKENS, "cutRows": 0, "droppedRows": 3, "lostAnswers": 0})

    assert "<h1>3 of 100 rows are longer than 64 tokens and not used</h1>" in text


def test_bars_are_proportional_to_rows_and_few_rows_stay_visible() -> None:
    drawn = histogram(
        [
            {"start": 0, "end": 1, "rows": 0},
            {"start": 1, "end": 8, "rows": 1},
            {"start": 8, "end": 64, "rows": 10_000},
        ],
        "characters",
    )

    assert [bar.height for bar in drawn.bars] == [0.0, 1.0, 142.0]
    assert drawn.bars[1].title == "1 to 7 characters: 1 row"
    assert drawn.bars[0].title == "0 characters: 0 rows"
    assert [tick.text for tick in drawn.across] == ["0", "1", "8", "64"]
    assert [tick.text for tick in drawn.up] == ["0", "2.5k", "5k", "7.5k", "10k"]
    assert drawn.bins_grow
    assert not histogram([{"start": low, "end": low + 4, "rows": 1} for low in (0, 4)], "tokens").bins_grow


@pytest.mark.parametrize(("value", "top"), [(0, 1), (1, 1), (3, 4), (462, 500), (501, 800), (9_999, 10_000)])
def test_an_axis_ends_with_a_round_number(value: int, top: int) -> None:
    assert nice_ceiling(value) == top


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1_000, "1k"), (4_390, "4.4k"), (192_000, "192k"), (4e6, "4M")],
)
def test_numbers_beside_an_axis_are_short(value: float, text: str) -> None:
    assert compact(value) == text


def test_a_report_of_a_huge_source_is_small() -> None:
    problems = [problem(row, "a" * 100_000) for row in range(1, 1_001)]
    labels = tuple(Label(f"{number}" + "b" * 100_000, {"train": 1}) for number in range(50))

    report: Document = document(prepared(*problems, statistics=Statistics(labels=labels)))

    assert len(encode(report)) < 3_000_000
    assert len(page(report)) < 3_000_000
