"""What data preparation found fault with, as status and events show it."""

from typing import Final

from finetune_operator.api.meta import MAX_PROBLEMS
from finetune_operator.status.conditions import shortened
from finetune_trainer.contract.results import PrepareResult

FIRST_LIMIT: Final = 500
"""Characters of the one that an event shows, so that the report's uri has its place beside it."""


def shown_problems(prepared: PrepareResult) -> tuple[str, ...]:
    """The first rows that cannot be used; the store has all of them."""
    return _shown(prepared.problems)


def shown_warnings(prepared: PrepareResult) -> tuple[str, ...]:
    """The first warnings; the report in the store has more."""
    return _shown(prepared.warnings)


def faults(version: str, prepared: PrepareResult) -> str | None:
    """What an event says of a version that has faults, with the first of them; None where it has none."""
    dropped, warned = prepared.problem_count, prepared.warning_count
    if not dropped and not warned:
        return None
    first = next(iter((*prepared.problems, *prepared.warnings)), None)
    parts = (
        f"problems in rows that were left out: {dropped}" if dropped else None,
        f"warnings: {warned}" if warned else None,
        f"the first: {shortened(first, FIRST_LIMIT)}" if first is not None else None,
        f"all of them: {prepared.report_uri}" if prepared.report_uri is not None else None,
    )
    return f"DatasetVersion {version}: {'; '.join(part for part in parts if part is not None)}"


def _shown(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(shortened(text) for text in texts[:MAX_PROBLEMS])
