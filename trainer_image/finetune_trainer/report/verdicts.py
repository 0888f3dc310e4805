# SPDX-License-Identifier: Apache-2.0
"""Reports in words: headlines for problems and relations between rows, and verdicts of a sentence each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_trainer.data.row_problems import Code
from finetune_trainer.report.document import Document

DATASET_CODES: Final = frozenset(
    {
        Code.FORMS_DIFFER,
        Code.COLUMNS_IGNORED,
        Code.FIELDS_IGNORED,
        Code.FEW_ROWS,
        Code.NO_TRAINING_ROWS,
        Code.EMPTY_SPLIT,
        Code.CONFLICTING_DUPLICATES,
        Code.NEAR_DUPLICATES,
        Code.NEAR_DUPLICATES_LIMITED,
        Code.LEAKED_ROWS,
        Code.NEAR_CONSTANT_COMPLETIONS,
        Code.ONE_LABEL,
        Code.COMBINED_LABELS,
        Code.SIMILAR_LABELS,
        Code.LABEL_NOT_HELD_OUT,
    }
)
"""Problems of all rows together."""

HEADLINES: Final[Mapping[Code, str]] = {
    Code.FILE_EMPTY: "The file is empty",
    Code.FILE_UNKNOWN: "The format is unknown",
    Code.FILE_DAMAGED: "The file is damaged",
    Code.FILE_ENDS_EARLY: "The file ends too early",
    Code.FORMATS_MIXED: "Formats are mixed",
    Code.FORMS_DIFFER: "Sources have different forms of rows",
    Code.HEADER: "The header does not match",
    Code.ENCODING: "Text is not UTF-8",
    Code.SYNTAX: "Rows cannot be parsed",
    Code.ROW_TOO_LONG: "Rows are too long",
    Code.FIELD_COUNT: "Rows have too few or too many fields",
    Code.FIELD_MISSING: "Fields are missing",
    Code.FIELD_EMPTY: "Fields are empty",
    Code.FIELD_TYPE: "Fields have the wrong type",
    Code.FIELD_VALUE: "Fields have an invalid value",
    Code.CONTROL_CHARACTER: "Texts contain control characters",
    Code.BROKEN_CHARACTER: "Texts contain broken characters",
    Code.UNSUPPORTED: "Rows have unsupported content",
    Code.ROLE: "Messages have the wrong role",
    Code.TURN_ORDER: "Turns are in the wrong order",
    Code.NOTHING_TO_LEARN: "Rows have no answer to learn",
    Code.TOOL_CALL: "Tool calls and results do not match",
    Code.GROUP: "Rows have no group",
    Code.SPLIT: "Rows have no split",
    Code.SECRET: "Texts may contain secrets",
    Code.EMAIL_ADDRESS: "Texts contain e-mail addresses",
    Code.PAYMENT_CARD: "Texts contain payment card numbers",
    Code.IBAN: "Texts contain bank account numbers (IBAN)",
    Code.PHONE_NUMBER: "Texts contain phone numbers",
    Code.CONTROL_SEQUENCE: "Texts contain control sequences of a model",
    Code.COLUMNS_IGNORED: "Named columns are not used",
    Code.FIELDS_IGNORED: "Fields that may have a meaning are not read",
    Code.FEW_ROWS: "There are few rows",
    Code.NO_TRAINING_ROWS: "There are no rows to train on",
    Code.EMPTY_SPLIT: "A split is empty",
    Code.CONFLICTING_DUPLICATES: "Equal inputs have different answers",
    Code.NEAR_DUPLICATES: "Rows are nearly the same",
    Code.NEAR_DUPLICATES_LIMITED: "Near duplicates were searched in a part of the rows",
    Code.LEAKED_ROWS: "Training rows are also in validation or test",
    Code.ONE_LABEL: "All labels are the same",
    Code.COMBINED_LABELS: "Several labels are one answer",
    Code.SIMILAR_LABELS: "Labels look the same",
    Code.LABEL_NOT_HELD_OUT: "Labels have no held-out rows",
    Code.NEAR_CONSTANT_COMPLETIONS: "Nearly all answers are the same",
}

RELATIONS: Final[Mapping[str, str]] = {
    "Exact": "is the same as",
    "Near": "is nearly the same as",
    "Conflict": "has a different answer than",
    "Leak": "is a training row and the same as the held-out",
    "GroupLeak": "is a training row of the same group as the held-out",
    "NearLeak": "is a training row and nearly the same as the held-out",
}
"""Phrase between the positions of two similar rows."""


def headline(code: str) -> str:
    """The headline of a code."""
    return HEADLINES[Code(code)]


Level = Literal["good", "warning", "error"]


@dataclass(frozen=True, slots=True)
class ReportVerdict:
    """Sentence at the top of a report, with its level and details."""

    level: Level
    title: str
    detail: str


def verdict(report: Document) -> ReportVerdict:
    """Whether the rows of a report can be trained on."""
    rows, invalid, kept = report["rows"], report["invalidRows"], report["keptRows"]
    broken = report["brokenFiles"]
    rest = (
        f"The remaining {count_noun(report['validRows'], 'row')} can be used." if report["validRows"] else ""
    )
    if not rows and all(
        group["code"] == Code.FILE_EMPTY for group in report["problemsByCode"] if group["severity"] == "error"
    ):
        return ReportVerdict("error", "There are no rows", _first_error(report))
    if broken and not kept:
        return ReportVerdict("error", "The source cannot be read", _first_error(report))
    if broken:
        subject = "The file" if len(report["files"]) == 1 else count_noun(broken, "file")
        return ReportVerdict("error", f"{subject} cannot be read to the end", _first_error(report))
    if invalid:
        subject = f"{number(invalid)} of {count_noun(rows, 'row')}"
        return ReportVerdict("error", f"{subject} cannot be used", rest)
    if report["errorCount"]:
        return ReportVerdict("error", _title_of_error(report), _first_error(report))
    title = f"Ready to train: {count_noun(kept, 'row')}"
    if report["warningCount"]:
        return ReportVerdict(
            "warning", title, f"Review {count_noun(report['warningCount'], 'warning')} first."
        )
    return ReportVerdict("good", title, "No problems found.")


def token_verdict(report: Document) -> ReportVerdict:
    """Whether all rows fit into the max sequence length."""
    limit = count_noun(report["maxSequenceLength"], "token")
    truncated, lost, dropped = report["cutRows"], report["lostAnswers"], report["droppedRows"]
    if dropped:
        verb = "is" if dropped == 1 else "are"
        rows = count_noun(report["rows"], "row")
        title = f"{number(dropped)} of {rows} {verb} longer than {limit} and not used"
        return ReportVerdict("warning", title, "Raise maxSequenceLength, or shorten the rows.")
    if not truncated:
        return ReportVerdict("good", f"All rows fit into {limit}", "No row is truncated.")
    verb = "is" if truncated == 1 else "are"
    title = f"{number(truncated)} of {count_noun(report['rows'], 'row')} {verb} truncated to {limit}"
    fix = "Raise maxSequenceLength, or shorten the rows."
    if lost:
        return ReportVerdict(
            "error", title, f"In {count_noun(lost, 'row')}, no part of the answer is left. {fix}"
        )
    return ReportVerdict("warning", title, f"Tokens beyond the limit are not used. {fix}")


def number(value: float) -> str:
    """Format a number with thousands separators; a fraction below 1,000 with one digit."""
    return f"{value:,.0f}" if float(value).is_integer() or value >= 1_000 else f"{value:,.1f}"


def count_noun(count: int, noun: str) -> str:
    """A number with its noun in the singular or plural."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"


def sentence(problem: Document) -> str:
    """A problem without its position: what is wrong, what was expected, what to do."""
    expected = f"expected {problem['expected']}" if problem["expected"] else ""
    return "; ".join(part for part in (problem["message"], expected, problem["hint"]) if part)


def position(problem: Document) -> str:
    """Position of a problem: source, file, row, and the line if its number differs. Empty for the whole
    dataset.
    """
    row, line = problem["record"], problem["line"]
    parts = [] if row is None else [f"row {number(row)}"]
    if line is not None and line != row:
        parts.append(f"line {number(line)}")
    places = [name for name in (problem["source"], problem["file"]) if name is not None]
    return ", ".join([*places, *parts])


def _first_error(report: Document) -> str:
    for group in report["problemsByCode"]:
        for problem in group["examples"]:
            if group["severity"] == "error":
                where, text = position(problem), sentence(problem)
                return f"{where}: {text}." if where else f"{text[:1].upper()}{text[1:]}."
    return ""


def _title_of_error(report: Document) -> str:
    codes = {group["code"] for group in report["problemsByCode"]}
    return "No rows to train on" if Code.NO_TRAINING_ROWS in codes else "The rows cannot be trained on"
