# SPDX-License-Identifier: Apache-2.0
"""The reports as self-contained HTML pages, without network access and without scripts of others."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from finetune_trainer.data.formats.registry import FORMATS
from finetune_trainer.report.document import LEFT, Document, histogram
from finetune_trainer.report.evaluation.content import evaluation_verdict, figure, gate_lines, gate_note
from finetune_trainer.report.evaluation.facts import OUTCOMES, VERDICTS
from finetune_trainer.report.training import (
    curve_chart,
    curve_note,
    facts,
    interval_text,
    loss,
    loss_chart,
    retention_reason,
    runs_chart,
    share_text,
    training_verdict,
)
from finetune_trainer.report.verdicts import (
    DATASET_CODES,
    RELATIONS,
    count_noun,
    headline,
    number,
    position,
    token_verdict,
    verdict,
)

if TYPE_CHECKING:
    from jinja2 import Template


FOLDER: Final = Path(__file__).parent
OPEN_ROWS: Final = 25
"""Rows of an evaluation that are visible before the reader asks for more."""


def page(report: Document) -> str:
    """The page of a report made by `document`."""
    kind = f"Data report · {FORMATS[report['format']].title}" if report["format"] else "Data report"
    source = count_noun(len(report["sources"]), "source") if len(report["sources"]) > 1 else report["source"]
    return _template("page.html.jinja").render(
        report=report, verdict=verdict(report), kind=kind, source=source
    )


def token_page(report: Document) -> str:
    """The page about the rows' lengths in tokens of a model's tokenizer.

    `report` has `baseModel`, `maxSequenceLength`, `rows`, `cutRows` (longer), `lostAnswers` (rows
    without any token of their answer), `learnedTurns` and `unlearnedTurns` of the assistant, `lengths` in
    tokens, like those in characters of a data report, and `longest`: `[{split, row, tokens}]`.
    """
    return _template("tokens.html.jinja").render(
        report=report, verdict=token_verdict(report), kind="Lengths in tokens", source=report["baseModel"]
    )


def training_page(report: Document) -> str:
    """The page about a run's losses. `report` is made by `training_report`."""
    return _template("training.html.jinja").render(
        report=report,
        verdict=training_verdict(report),
        kind=f"Training report · {report['method']}",
        source=f"run {report['run']}",
        facts=facts(report),
        chart=loss_chart(report) if report["training"] else None,
        curve=curve_chart(report["learningCurve"]) if report["learningCurve"] else None,
    )


def losses_picture(runs: Mapping[str, Document], unit: str) -> str:
    """The losses of runs, by name, as one SVG document. A report needs `training` and `validation`."""
    chart = runs_chart(runs)
    title = f"Loss of {', '.join(runs)}"
    return _template("losses.svg.jinja").render(chart=chart, title=title, unit=unit)


def evaluation_page(report: Document) -> str:
    """The page about an evaluation. `report` is made by `evaluation_report`.

    Its script filters the rows; without it, all rows are listed. The page's policy allows that script by its
    hash and no other, so that a text from a model could not run one even if it were not escaped.
    """
    return _template("evaluation/evaluation.html.jinja").render(
        report=report,
        verdict=evaluation_verdict(report),
        curve=curve_chart(report["learningCurve"]) if report["learningCurve"] else None,
        kind="Evaluation report",
        source=f"run {report['run']}",
        script=(FOLDER / "evaluation" / "evaluation.js").read_text(),
    )


@cache
def _template(name: str) -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "advice": advice,
        "counted": count_noun,
        "figure": figure,
        "gate_lines": gate_lines,
        "gate_note": gate_note,
        "curve_note": curve_note,
        "headline": headline,
        "interval_text": interval_text,
        "kept_as": retention_reason,
        "largest_share": largest_share,
        "loss": loss,
        "number": number,
        "position": position,
        "settings": settings,
        "share": share,
        "share_text": share_text,
        "size": size,
        "source_hash": source_hash,
        "source_settings": source_settings,
    }
    environment.globals |= {
        "characters": partial(histogram, unit="characters"),
        "token_counts": partial(histogram, unit="tokens"),
        "relations": RELATIONS,
        "left": LEFT,
        "dataset_codes": DATASET_CODES,
        "outcomes": OUTCOMES,
        "verdicts": VERDICTS,
        "open_rows": OPEN_ROWS,
    }
    return environment.get_template(name)


def source_hash(script: str) -> str:
    """Source of a Content Security Policy that allows this inline script and no other."""
    return f"sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def share(part: int, whole: int) -> str:
    """Format a percentage: never 0% of something, and never 100% of less than everything."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "<0.1%"
    if 99.9 < percent < 100:
        return ">99.9%"
    return f"{percent:.0f}%" if percent in (0, 100) or 10 <= percent <= 90 else f"{percent:.1f}%"


def largest_share(labels: list[Document], splits: list[Document]) -> float:
    """Largest share of a label in a split, which has the longest bar. 1 without labels."""
    return max(
        (label["rows"][split["name"]] / split["rows"] for label in labels for split in splits), default=1.0
    )


def size(count: int) -> str:
    """Format a number of bytes with its unit."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{number(count)} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def advice(problems: list[Document]) -> Document | None:
    """What was expected and what to do, if it is the same for all problems."""
    found = {(problem["expected"], problem["hint"]) for problem in problems}
    if len(found) != 1:
        return None
    expected, hint = found.pop()
    return {"expected": expected, "hint": hint}


def settings(report: Document) -> list[tuple[str, str]]:
    """Names and values of the preparation's settings that were set or have an effect.

    With several sources, the table of sources has those of each source.
    """
    preparation = report["preparation"]
    found = [] if len(report["sources"]) > 1 else source_settings(report["sources"])
    if preparation["template"]:
        found.append(("Template of the prompt", preparation["template"]))
    if preparation["keptColumns"]:
        found.append(("Kept columns", ", ".join(preparation["keptColumns"])))
    found.append(("Split", _split(preparation["split"])))
    cleaning = preparation["cleaning"]
    normalized = [
        name
        for name, is_set in (
            ("whitespace", cleaning["normalizeWhitespace"]),
            ("Unicode", cleaning["normalizeUnicode"]),
        )
        if is_set
    ]
    found.append(("Normalized", " and ".join(normalized) or "nothing"))
    near = {"Off": "not searched for", "Keep": "counted and kept", "Remove": "removed"}[
        cleaning["nearDuplicates"]
    ]
    if search := report["statistics"]["nearDuplicateSearch"]:
        near += f"; {number(search['rows'])} of {count_noun(search['ofRows'], 'possible row')} compared"
    found.append(("Near duplicates", near))
    return found + _checks(preparation["checks"])


def source_settings(sources: list[Document]) -> list[tuple[str, str]]:
    """Names and values of how some sources are read."""
    found = []
    for source in sources:
        found.append(("Format", source["requestedFormat"] or "detected from the content"))
        found += [(f"Column for {name}", column) for name, column in source["columns"].items() if column]
        if source["splits"] == "TrainOnly":
            found.append(("Splits of the source", "train only"))
    return found


def _split(split: dict[str, Any]) -> str:
    if split["column"]:
        return f"from column {split['column']}"
    if split["fromFiles"]:
        return "from the file names"
    by = f"the column {split['groupBy']}" if split["groupBy"] else "the input"
    return (
        f"{100 * split['validation']:g}% validation, {100 * split['test']:g}% test; by a hash of {by},"
        f" seed {split['seed']}"
    )


def _checks(checks: dict[str, Any]) -> list[tuple[str, str]]:
    names = {
        "secrets": "secrets",
        "emailAddresses": "e-mail addresses",
        "paymentCards": "payment cards",
        "ibans": "IBANs",
        "phoneNumbers": "phone numbers",
    }
    titles = {
        "Warn": "Warned about",
        "Redact": "Replaced by placeholders",
        "Fail": "Rejected",
        "Off": "Not searched for",
    }
    found = []
    for setting, title in titles.items():
        with_setting = [name for key, name in names.items() if checks[key] == setting]
        if with_setting:
            found.append((title, ", ".join(with_setting)))
    if checks["phoneRegion"] and checks["phoneNumbers"] != "Off":
        found.append(("Country of phone numbers", checks["phoneRegion"]))
    return found
