# SPDX-License-Identifier: Apache-2.0
"""docs/conditions.md and docs/failures.md: what each condition, reason and event means, and what to do."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from finetune_operator.status import explanations, failures
from finetune_operator.status.explanations import Meanings
from finetune_operator.status.failures import Failure

FOLDER: Final = Path(__file__).parent
REMEDY: Final = ("state", "what to do")


def conditions_page() -> str:
    """The page of conditions, reasons and events."""
    conditions = ((f"`{row.type}`", row.objects, row.true_when) for row in explanations.CONDITIONS)
    events = ((_names(row.reasons), row.types, row.about) for row in explanations.EVENTS)
    return _page(
        "conditions_page.md",
        conditions=_table(("type", "on", "True when"), conditions),
        in_progress=_meanings("meaning", explanations.IN_PROGRESS),
        waiting=_meanings("what is missing", explanations.WAITING),
        success=_meanings("meaning", explanations.SUCCESS),
        failure=_meanings("meaning", explanations.FAILURE),
        events=_table(("reason", "type", "about"), events),
    )


def failures_page() -> str:
    """The page of failures by what happened."""
    return _page(
        "failures_page.md",
        pod_does_not_start=_situations(failures.POD_DOES_NOT_START),
        pod_ends=_situations(failures.POD_ENDS),
        stage_fails=_table(("reason", *REMEDY), map(_remedy, failures.STAGE_FAILS)),
        prerequisite_missing=_meanings("what to do", failures.PREREQUISITE_MISSING),
    )


def _remedy(failure: Failure) -> tuple[str, ...]:
    names = map("`{}`".format, failure.reasons)
    reported = failure.reported.format(*names) if failure.reported else _names(failure.reasons)
    return reported, failure.state, failure.next_step


def _situations(rows: Iterable[Failure]) -> str:
    return _table(("what happened", "reason", *REMEDY), ((row.happened, *_remedy(row)) for row in rows))


def _meanings(title: str, meanings: Meanings) -> str:
    return _table(("reason", title), ((_names(reasons), text) for reasons, text in meanings.items()))


def _names(reasons: Iterable[str]) -> str:
    return ", ".join(f"`{reason}`" for reason in reasons)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (f"| {' | '.join(cells)} |" for cells in (titles, *rows))
    head = next(lines)
    return "\n".join((head, "|" + "---|" * len(titles), *lines))


def _page(template: str, **tables: str) -> str:
    page = (FOLDER / template).read_text()
    for name, table in tables.items():
        page = page.replace(f"<<{name}>>", table)
    return page
