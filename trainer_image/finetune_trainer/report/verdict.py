"""What comes of it, in a sentence."""

from dataclasses import dataclass
from typing import Literal

from finetune_trainer.data.rowproblems import Code
from finetune_trainer.report.document import Document

Level = Literal["good", "warning", "error"]


@dataclass(frozen=True, slots=True)
class ReportVerdict:
    """The sentence, and what it means for whoever reads it."""

    level: Level
    title: str
    detail: str


def verdict(report: Document) -> ReportVerdict:
    """Of a report, whether its rows can be trained on."""
    rows, invalid, kept = report["rows"], report["invalidRows"], report["keptRows"]
    broken = report["brokenFiles"]
    rest = f"The other {counted(report['validRows'], 'row')} can." if report["validRows"] else ""
    if not rows and all(
        group["code"] == Code.FILE_EMPTY for group in report["problemsByCode"] if group["severity"] == "error"
    ):
        return ReportVerdict("error", "There are no rows", _first_error(report))
    if broken and not kept:
        return ReportVerdict("error", "Cannot be read", _first_error(report))
    if broken:
        what = "The file" if len(report["files"]) == 1 else counted(broken, "file")
        return ReportVerdict("error", f"{what} cannot be read to the end", _first_error(report))
    if invalid:
        subject = f"{number(invalid)} of {counted(rows, 'row')}"
        return ReportVerdict("error", f"{subject} cannot be used", rest)
    if report["errorCount"]:
        return ReportVerdict("error", _title_of_error(report), _first_error(report))
    title = f"Ready to train: {counted(kept, 'row')}"
    if report["warningCount"]:
        return ReportVerdict(
            "warning", title, f"{counted(report['warningCount'], 'warning')} to look at first."
        )
    return ReportVerdict("good", title, "No problems were found.")


def token_verdict(report: Document) -> ReportVerdict:
    """Of the lengths of rows in tokens, whether all of them can be learned whole."""
    limit = counted(report["maxSequenceLength"], "token")
    cut, lost = report["cutRows"], report["lostAnswers"]
    if not cut:
        return ReportVerdict("good", f"All rows fit into {limit}", "Nothing is cut.")
    title = f"{number(cut)} of {counted(report['rows'], 'row')} {'is' if cut == 1 else 'are'} cut at {limit}"
    fix = "Raise maxSequenceLength, or shorten the rows."
    if lost:
        return ReportVerdict(
            "error", title, f"Of {counted(lost, 'row')} no part of the answer is left. {fix}"
        )
    return ReportVerdict("warning", title, f"What is beyond is not learned. {fix}")


def number(value: float) -> str:
    """With thousands separators; of a fraction one digit."""
    return f"{value:,.0f}" if float(value).is_integer() or value >= 1_000 else f"{value:,.1f}"


def counted(count: int, noun: str) -> str:
    """The number with its noun, in the plural where it must be."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"


def sentence(problem: Document) -> str:
    """A problem without its place: what is wrong, what was expected, what to do."""
    expected = f"expected {problem['expected']}" if problem["expected"] else ""
    return "; ".join(part for part in (problem["message"], expected, problem["hint"]) if part)


def place(problem: Document) -> str:
    """Where it is: file, row, and line where that is another number; empty where it is no one place."""
    row, line = problem["record"], problem["line"]
    parts = [] if row is None else [f"row {number(row)}"]
    if line is not None and line != row:
        parts.append(f"line {number(line)}")
    if problem["file"] is not None:
        parts.insert(0, problem["file"])
    return ", ".join(parts)


def _first_error(report: Document) -> str:
    for group in report["problemsByCode"]:
        for problem in group["examples"]:
            if group["severity"] == "error":
                where, text = place(problem), sentence(problem)
                return f"{where}: {text}." if where else f"{text[:1].upper()}{text[1:]}."
    return ""


def _title_of_error(report: Document) -> str:
    codes = {group["code"] for group in report["problemsByCode"]}
    return "No rows to train on" if Code.NO_TRAINING_ROWS in codes else "Cannot be trained on"
