"""State of the kinds that are records: none, unless something in their spec cannot be had."""

from datetime import datetime

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.meta import Condition
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_operator.status.reserved import not_implemented


def record_conditions(record: Checkpoint | DatasetVersion, now: datetime) -> tuple[Condition, ...]:
    """The record's conditions, Stalled where its spec asks for what this release does not act on."""
    messages = not_implemented(record.spec)
    if not messages:
        return conditions.without(record.status.conditions, *conditions.STATES)
    return conditions.enter(
        record.status.conditions,
        ConditionType.STALLED,
        Reason.NOT_IMPLEMENTED,
        "; ".join(messages),
        generation=record.metadata.generation,
        now=now,
    )
