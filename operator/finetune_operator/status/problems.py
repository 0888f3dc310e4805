# SPDX-License-Identifier: Apache-2.0
"""Problems and warnings of data preparation, for statuses and events."""

from typing import Final

from finetune_operator.api.meta import MAX_PROBLEMS
from finetune_operator.status.conditions import shortened
from finetune_trainer.contract.results import PrepareResult

MAX_FIRST_PROBLEM_CHARACTERS: Final = 500
"""Limit of the problem in an event, so that the event has room for the report's uri."""


def shown_problems(prepared: PrepareResult) -> tuple[str, ...]:
    """The first rows that cannot be used; the report in the store has all of them."""
    return _shown(prepared.problems)


def shown_warnings(prepared: PrepareResult) -> tuple[str, ...]:
    """The first warnings; the report in the store has more."""
    return _shown(prepared.warnings)


def faults(version: str, prepared: PrepareResult) -> str | None:
    """Message of the event about a version's problems and warnings; None if it has none."""
    dropped, warned = prepared.problem_count, prepared.warning_count
    if not dropped and not warned:
        return None
    first = next(iter((*prepared.problems, *prepared.warnings)), None)
    parts = (
        f"problems in rows that were left out: {dropped}" if dropped else None,
        f"warnings: {warned}" if warned else None,
        f"the first: {shortened(first, MAX_FIRST_PROBLEM_CHARACTERS)}" if first is not None else None,
        f"all of them: {prepared.report_uri}" if prepared.report_uri is not None else None,
    )
    return f"DatasetVersion {version}: {'; '.join(part for part in parts if part is not None)}"


def _shown(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(shortened(text) for text in texts[:MAX_PROBLEMS])
