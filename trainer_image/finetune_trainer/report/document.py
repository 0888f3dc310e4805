# SPDX-License-Identifier: Apache-2.0
"""The report as JSON, and the geometry of its histograms, which the page draws as SVG.

docs/report.md and docs/report.schema.json describe its versioned schema.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final

from finetune_trainer.contract.dataset import Checks, Cleaning, Split
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.result import (
    CharacterLengths,
    DuplicatePair,
    Prepared,
    RowChanges,
    RowProblem,
    SourceSummary,
    Statistics,
)
from finetune_trainer.data.row_problems import RowPosition
from finetune_trainer.rows import SPLIT_FILES

WIDTH: Final = 360.0
HEIGHT: Final = 190.0
LEFT: Final = 46.0
TOP: Final = 10.0
BOTTOM: Final = 152.0
"""Bottom of the plot in SVG units. The ticks and the name of the axis are below it."""
TICKS_ACROSS: Final = 6
TICKS_UP: Final = 4


@dataclass(frozen=True, slots=True)
class ChartBar:
    """Bar of one bucket."""

    x: float
    y: float
    width: float
    height: float
    title: str
    is_beyond: bool
    """Whether rows in it are truncated."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Label of an axis at one position."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Everything that the page draws."""

    bars: tuple[ChartBar, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    mark: float | None
    """Position of the max length that is not truncated. None: beyond the bars, or no limit."""
    bins_grow: bool
    """Whether bars of equal width stand for bins of different widths, which the axis must say."""


def histogram(buckets: Sequence[dict[str, Any]], unit: str, limit: int | None = None) -> Histogram:
    """Bars of equal width for one or more buckets `{start, end, rows}` of growing width."""
    step = (WIDTH - LEFT) / len(buckets)
    top = nice_ceiling(max(bucket["rows"] for bucket in buckets))
    bars = []
    for index, bucket in enumerate(buckets):
        height = (BOTTOM - TOP) * bucket["rows"] / top
        # A bucket with few rows next to one with many rows must not look empty.
        height = max(height, 1.0) if bucket["rows"] else 0.0
        last = bucket["end"] - 1
        span = f"{last:,}" if last <= bucket["start"] else f"{bucket['start']:,} to {last:,}"
        rows = f"{bucket['rows']:,} row" + ("" if bucket["rows"] == 1 else "s")
        bars.append(
            ChartBar(
                x=round(LEFT + index * step, 1),
                y=round(BOTTOM - height, 1),
                width=round(max(step - 1.5, 1.0), 1),
                height=round(height, 1),
                title=f"{span} {unit}: {rows}",
                is_beyond=limit is not None and last > limit,
            )
        )
    edges = [bucket["start"] for bucket in buckets] + [buckets[-1]["end"]]
    gaps = min(len(buckets), TICKS_ACROSS - 1)
    ticked = sorted({round(gap * len(buckets) / gaps) for gap in range(gaps + 1)})
    return Histogram(
        bars=tuple(bars),
        across=tuple(Tick(round(LEFT + index * step, 1), compact(edges[index])) for index in ticked),
        up=tuple(
            Tick(round(BOTTOM - (BOTTOM - TOP) * value / top, 1), compact(value)) for value in _steps(top)
        ),
        mark=None if limit is None else _mark_position(edges, limit, step),
        bins_grow=len({end - start for start, end in pairwise(edges)}) > 1,
    )


def nice_ceiling(value: float) -> int:
    """Round up to a number that an axis can end with: 1, 2, 4, 5 or 8 times a power of ten."""
    power = 10 ** math.floor(math.log10(max(value, 1)))
    return int(next(power * digit for digit in (1, 2, 4, 5, 8, 10) if power * digit >= value))


def compact(value: float) -> str:
    """Format a number for an axis with about two digits: 950, 1.5k, 20k, 3M."""
    for size, letter in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f}".removesuffix(".0") + letter if scaled < 10 else f"{scaled:.0f}{letter}"
    return f"{value:g}"


def _steps(top: int) -> list[int]:
    count = next(count for count in range(TICKS_UP, 0, -1) if top % count == 0)
    return [top * index // count for index in range(count + 1)]


def _mark_position(edges: Sequence[int], value: int, step: float) -> float | None:
    for index, (start, end) in enumerate(pairwise(edges)):
        if start <= value < end:
            return round(LEFT + (index + (value - start) / (end - start)) * step, 1)
    return None


VERSION: Final = 1
MAX_LISTED_PROBLEMS: Final = 1_000
MAX_TEXT_CHARACTERS: Final = 1_000
"""Max length of a text from the rows. Longer texts are truncated, so that the report stays small."""

UNSHOWABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff]")
"""Characters that UTF-8 cannot encode, control characters of terminals, and those that reverse text."""

Document = dict[str, Any]


def document(
    prepared: Prepared,
    *,
    source: str | None = None,
    digest: str | None = None,
    split_digests: Mapping[SplitName, str] | None = None,
    problem_log: str | None = None,
) -> Document:
    """The report of one preparation. Equal preparations have equal reports.

    `source` is the origin of the rows if there is one source. `digest` and `split_digests` are the digests of
    the prepared rows and of their files. The report lists the first problems; `problem_log` is the log with
    all of them.
    """
    listed = _listed(prepared.problems)
    return {
        "version": VERSION,
        "source": showable(source),
        "format": prepared.format,
        "rows": prepared.rows,
        "validRows": prepared.valid_rows,
        "invalidRows": prepared.invalid_rows,
        "keptRows": prepared.kept_rows,
        "brokenFiles": prepared.broken_files,
        "files": [
            {
                "source": showable(file.source),
                "name": showable(file.name),
                "bytes": file.bytes,
                "sha256": file.sha256,
            }
            for file in prepared.files
        ],
        "sources": [_source(source) for source in prepared.sources],
        "unusedFields": [_truncated(name) for name in prepared.unused_fields],
        "errorCount": prepared.error_count,
        "warningCount": prepared.warning_count,
        "problemsByCode": _by_code(prepared),
        "problems": [problem_record(problem) for problem in listed],
        "problemsOmitted": prepared.error_count + prepared.warning_count - len(listed),
        "problemLog": showable(problem_log),
        "splits": [
            {
                "name": name,
                "rows": prepared.split_rows.get(name, 0),
                "digest": (split_digests or {}).get(name),
            }
            for name in SPLIT_FILES
        ],
        "digest": digest,
        "statistics": _statistics(prepared.statistics),
        "alike": [duplicate_record(pair) for pair in prepared.duplicate_pairs],
        "difference": _difference(prepared.difference),
        "preparation": {
            "template": showable(prepared.recipe.names.template),
            "split": _plain(prepared.recipe.division),
            "cleaning": _plain(prepared.recipe.cleaning),
            "checks": _plain(prepared.recipe.checks),
            "keptColumns": [_truncated(name) for name in prepared.recipe.kept_columns],
            "ruleVersion": prepared.recipe.rule_version,
        },
    }


def _source(source: SourceSummary) -> Document:
    names = source.recipe.names
    return {
        "name": showable(source.name),
        "format": source.format,
        "requestedFormat": source.recipe.format,
        "columns": {
            name: showable(getattr(names, name))
            for name in ("prompt", "completion", "messages", "chosen", "rejected", "label")
        },
        "splits": source.recipe.splits,
        "rows": source.rows,
        "invalidRows": source.invalid_rows,
        "leakedRows": source.leaked_rows,
        "splitRows": {name: source.split_rows.get(name, 0) for name in SPLIT_FILES},
    }


def encode(report: Document) -> bytes:
    """Encode a report as a JSON file."""
    return json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False).encode() + b"\n"


def _listed(problems: Sequence[RowProblem]) -> list[RowProblem]:
    """The first problems of rows, and every problem of all rows together."""
    of_all = [problem for problem in problems if problem.position == RowPosition()]
    of_rows = [problem for problem in problems if problem.position != RowPosition()]
    return of_rows[: MAX_LISTED_PROBLEMS - len(of_all)] + of_all


def _by_code(prepared: Prepared) -> list[Document]:
    groups = []
    for code, count in prepared.counts.items():
        examples = prepared.examples.get(code, ())
        is_error = any(example.issue.severity == "error" for example in examples)
        groups.append(
            {
                "code": str(code),
                "severity": "error" if is_error else "warning",
                "count": count,
                "examples": [problem_record(example) for example in examples],
            }
        )
    return sorted(groups, key=lambda group: (group["severity"] != "error", -group["count"], group["code"]))


def problem_record(problem: RowProblem) -> Document:
    """One problem, as in `problems` and in a log of all problems."""
    issue = problem.issue
    return {
        **_position(problem.position),
        "column": _truncated(issue.column),
        "severity": issue.severity,
        "code": str(issue.code),
        "message": _truncated(issue.what),
        "expected": _truncated(issue.expected),
        "hint": _truncated(issue.fix),
    }


def _position(position: RowPosition) -> Document:
    return {
        "source": showable(position.source),
        "file": showable(position.file),
        "line": position.line,
        "record": position.record,
    }


def duplicate_record(pair: DuplicatePair) -> Document:
    """One pair of similar rows, as in `alike` and in a log of all pairs."""
    return {"kinship": pair.kind, "row": _position(pair.position), "of": _position(pair.other)}


def _statistics(statistics: Statistics) -> Document:
    return {
        "duplicateRows": statistics.duplicate_rows,
        "nearDuplicateRows": statistics.near_duplicate_rows,
        "nearDuplicateSearch": None
        if statistics.near_search is None
        else {"rows": statistics.near_search.rows, "ofRows": statistics.near_search.of_rows},
        "leakedRows": statistics.leaked_rows,
        "conflictingRows": statistics.conflicting_rows,
        "redactedRows": statistics.redacted_rows,
        "promptCharacters": _lengths(statistics.prompt_characters),
        "completionCharacters": _lengths(statistics.completion_characters),
        "distinctCompletions": statistics.distinct_completions,
        "labels": [
            {
                "completion": _truncated(label.completion),
                "rows": {name: label.rows.get(name, 0) for name in SPLIT_FILES},
            }
            for label in statistics.labels
        ],
    }


def _lengths(lengths: CharacterLengths) -> Document:
    return {
        "mean": lengths.mean,
        "median": lengths.median,
        "p95": lengths.p95,
        "max": lengths.max,
        "histogram": [
            {"start": bucket.start, "end": bucket.end, "rows": bucket.rows} for bucket in lengths.histogram
        ],
    }


def _difference(difference: RowChanges | None) -> Document | None:
    if difference is None:
        return None
    return {
        "previous": difference.previous,
        "added": difference.added,
        "removed": difference.removed,
        "changed": difference.changed,
        "sources": [
            {
                "name": showable(source.name),
                "added": source.added,
                "removed": source.removed,
                "changed": source.changed,
            }
            for source in difference.sources
        ],
    }


def _plain(options: Split | Cleaning | Checks) -> Document:
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {
        camel(name): showable(value) if isinstance(value, str) else value for name, value in values.items()
    }


def camel(name: str) -> str:
    """The name of a field in JSON."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _truncated(text: str | None) -> str | None:
    if text is not None and len(text) > MAX_TEXT_CHARACTERS:
        text = text[: MAX_TEXT_CHARACTERS - 1] + "…"
    return showable(text)


def showable(text: str | None) -> str | None:
    """The text with the characters of UNSHOWABLE escaped."""
    return None if text is None else UNSHOWABLE.sub(lambda match: _escape(match[0]), text)


def _escape(character: str) -> str:
    """Escape a character as Python's `backslashreplace` does."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
