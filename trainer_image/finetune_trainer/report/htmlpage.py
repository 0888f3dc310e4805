"""The report as one HTML page that needs nothing beside it: no network, no script."""

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.formats.registry import FORMATS
from finetune_trainer.report.document import Document
from finetune_trainer.report.headlines import KINSHIPS, OF_ALL_ROWS, headline
from finetune_trainer.report.histogram import LEFT, histogram
from finetune_trainer.report.training import facts, kept_as, loss, loss_chart, training_verdict
from finetune_trainer.report.verdict import counted, number, place, token_verdict, verdict

if TYPE_CHECKING:
    from jinja2 import Template


def page(report: Document) -> str:
    """The page of a report that `document` made."""
    kind = f"Data report · {FORMATS[report['format']].title}" if report["format"] else "Data report"
    return _template("page.html.jinja").render(
        report=report, verdict=verdict(report), kind=kind, source=report["source"]
    )


def token_page(report: Document) -> str:
    """The page of what a model's tokenizer makes of the rows.

    `report` has `baseModel`, `maxSequenceLength`, `rows`, `cutRows` (longer than it), `lostAnswers` (rows of
    which no part of the answer is left), `lengths` in tokens, as of characters in a report, and `longest`:
    `[{split, row, tokens}]`.
    """
    return _template("tokens.html.jinja").render(
        report=report, verdict=token_verdict(report), kind="Lengths in tokens", source=report["baseModel"]
    )


def training_page(report: Document) -> str:
    """The page of how a run's losses went; `report` is what `train.trainingreport` makes."""
    return _template("training.html.jinja").render(
        report=report,
        verdict=training_verdict(report),
        kind=f"Training report · {report['method']}",
        source=f"run {report['run']}",
        facts=facts(report),
        chart=loss_chart(report) if report["training"] else None,
    )


@cache
def _template(name: str) -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "advice": advice,
        "counted": counted,
        "headline": headline,
        "kept_as": kept_as,
        "largest_share": largest_share,
        "loss": loss,
        "number": number,
        "place": place,
        "settings": settings,
        "share": share,
        "size": size,
    }
    environment.globals |= {
        "characters": partial(histogram, unit="characters"),
        "token_counts": partial(histogram, unit="tokens"),
        "kinships": KINSHIPS,
        "left": LEFT,
        "of_all_rows": OF_ALL_ROWS,
    }
    return environment.get_template(name)


def share(part: int, whole: int) -> str:
    """A percentage that never says 0 % of something, nor 100 % of less than all."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "<0.1%"
    if 99.9 < percent < 100:
        return ">99.9%"
    return f"{percent:.0f}%" if percent in (0, 100) or 10 <= percent <= 90 else f"{percent:.1f}%"


def largest_share(labels: list[Document], splits: list[Document]) -> float:
    """Of one label in one split; the longest bar. 1 where there are none."""
    return max(
        (label["rows"][split["name"]] / split["rows"] for label in labels for split in splits), default=1.0
    )


def size(count: int) -> str:
    """Bytes in words."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{number(count)} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def advice(problems: list[Document]) -> Document | None:
    """What was expected and what to do, where all these problems have it in common."""
    found = {(problem["expected"], problem["hint"]) for problem in problems}
    if len(found) != 1:
        return None
    expected, hint = found.pop()
    return {"expected": expected, "hint": hint}


def settings(preparation: Document) -> list[tuple[str, str]]:
    """How the rows were prepared, in words; only what was asked for or has an effect."""
    found = [("Format", preparation["format"] or "found by the content")]
    found += [(f"Column for {name}", column) for name, column in preparation["columns"].items() if column]
    if preparation["template"]:
        found.append(("Template of the prompt", preparation["template"]))
    found.append(("Split", _split(preparation["split"])))
    cleaning = preparation["cleaning"]
    normalized = [
        name
        for name, asked in (
            ("whitespace", cleaning["normalizeWhitespace"]),
            ("Unicode", cleaning["normalizeUnicode"]),
        )
        if asked
    ]
    found.append(("Normalized", " and ".join(normalized) or "nothing"))
    found.append(
        (
            "Near duplicates",
            {"Off": "not looked for", "Keep": "counted and kept", "Remove": "left out"}[
                cleaning["nearDuplicates"]
            ],
        )
    )
    return found + _checks(preparation["checks"])


def _split(split: dict[str, Any]) -> str:
    if split["column"]:
        return f"as column {split['column']} says"
    if split["fromFiles"]:
        return "as the files' names say"
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
        "Fail": "Refused",
        "Off": "Not looked for",
    }
    found = []
    for setting, title in titles.items():
        listed = [name for key, name in names.items() if checks[key] == setting]
        if listed:
            found.append((title, ", ".join(listed)))
    if checks["phoneRegion"] and checks["phoneNumbers"] != "Off":
        found.append(("Country of phone numbers", checks["phoneRegion"]))
    return found
