# SPDX-License-Identifier: Apache-2.0
"""The sentence at the top of the page: is the tuned model better, than what, and how sure is that."""

from finetune_trainer.contract.vocabulary import listed
from finetune_trainer.report.document import Document
from finetune_trainer.report.evaluation.rows import TUNED
from finetune_trainer.report.verdict import Level, ReportVerdict, counted


def evaluation_verdict(report: Document) -> ReportVerdict:
    """Whether the tuned model is better than the best of the others, by the deciding metric.

    A gain whose interval includes 0 is not certain, and one without an interval is not claimed.
    """
    metric, over, rows = report["decidedBy"], report["comparedWith"], counted(report["rows"], "row")
    own = value_of(report, metric, TUNED)
    if own is None:
        return ReportVerdict("warning", f"The model {TUNED} was not measured", f"{rows}.")
    if over is None:
        return ReportVerdict("warning", f"{metric} {figure(own)}, compared with no other model", f"{rows}.")
    gain = next((each for each in report["gains"] if (each["metric"], each["over"]) == (metric, over)), None)
    values = f"{metric} {figure(own)}, {over} {figure(value_of(report, metric, over))}, on {rows}."
    others = [subject for subject in report["subjects"] if subject != TUNED]
    if len(others) > 1:
        values += f" {over} is the best of {listed(others)}."
    if gain is None:
        return ReportVerdict("warning", f"Not compared with {over}", values)
    level, title = _claim(gain, over)
    return ReportVerdict(level, title, f"{values} {_certainty(gain)}")


def _claim(gain: Document, over: str) -> tuple[Level, str]:
    if gain["low"] is None or gain["high"] is None:
        direction = "Ahead of" if gain["gain"] > 0 else "Behind" if gain["gain"] < 0 else "Equal to"
        return "warning", f"{direction} {over} on these rows"
    if gain["low"] > 0:
        return "good", f"Better than {over}"
    if gain["high"] < 0:
        return "error", f"Worse than {over}"
    return "warning", f"Not shown to be better than {over}"


def _certainty(gain: Document) -> str:
    value = f"The gain is {figure(gain['gain'], signed=True)}"
    if gain["low"] is None or gain["high"] is None:
        return f"{value}. How sure that is, is unknown: there is no interval for it."
    low, high = (figure(gain[bound], signed=True) for bound in ("low", "high"))
    return f"{value}; with 95 % confidence it is between {low} and {high}."


def value_of(report: Document, metric: str, subject: str) -> float | None:
    """A score of the report; None if it was not measured."""
    scores = {(score["metric"], score["subject"]): score["value"] for score in report["scores"]}
    return scores.get((metric, subject))


def figure(value: float | None, *, signed: bool = False) -> str:
    """Format a value with three decimals, or with three digits if it is small; a dash for None."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    # Sums of fractions leave less than a billionth.
    if 1e-9 < abs(value) < 0.001:
        return f"{value:{sign}.3g}"
    return f"{value:{sign}.3f}"
