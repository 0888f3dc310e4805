# SPDX-License-Identifier: Apache-2.0
"""Record a result of prepare: its DatasetVersion, fields of the status, and events."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from finetune_operator.api.dataset import (
    MAX_VERSIONS,
    Dataset,
    DatasetVersionSummary,
    SourceDifference,
    VersionDifference,
)
from finetune_operator.api.meta import Condition
from finetune_operator.manifests.labels import dataset_version_name
from finetune_operator.manifests.records import build_dataset_version
from finetune_operator.plan import Create
from finetune_operator.reconcile.dataset.source_check import finish_check, prepared_in
from finetune_operator.reconcile.passes import PlanBuilder
from finetune_operator.status import conditions
from finetune_operator.status.conditions import is_prepared
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_operator.status.stage_results import select_problems, select_warnings, summarize_problems
from finetune_trainer.contract.results import PrepareResult

MAX_TEXT_CHARACTERS: Final = 1024
"""Maximum length of a text in the status that is useless if it is truncated, such as a URI."""
MAX_NAMED_SOURCES: Final = 3
"""Number of sources of a difference in a message."""
INCOMPLETE: Final = (
    "prepare reports success but not what it made: check that the trainer image belongs to this release"
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The version that a result describes."""

    name: str
    message: str
    """Message of the condition Ready."""
    fields: dict[str, Any]
    """Fields of the status."""


def record(dataset: Dataset, draft: PlanBuilder, prepared: PrepareResult | None) -> Recorded | None:
    """Create the version if it does not exist; None if the result does not describe one."""
    if (
        prepared is None
        or prepared.dataset is None
        or prepared.source is None
        or prepared.preparation is None
    ):
        return None
    name = dataset_version_name(dataset.name, prepared.dataset)
    store, secret = prepared_in(dataset, draft.snapshot)
    manifest = build_dataset_version(
        dataset,
        name,
        prepared,
        sources=dataset.spec.sources,
        store=store,
        store_credentials=secret,
        deletion_policy=dataset.spec.deletion_policy,
    )
    draft.create.append(Create(manifest, same="Digest"))
    status = dataset.status
    is_latest = name == status.latest_version
    difference = status.difference if is_latest else _difference(dataset, prepared)
    rows = sum(split.rows for split in prepared.splits)
    comparison = None if difference is None else _comparison(difference)
    known = [version for version in status.versions if version.name != name]
    if len(known) == len(status.versions):
        message = f"DatasetVersion {name} with {rows} rows" + (f" ({comparison})" if comparison else "")
        draft.event(EventReason.DATASET_VERSION_CREATED, message)
    fault = summarize_problems(name, prepared)
    if fault is not None and not (is_latest and is_prepared(dataset)):
        draft.event(EventReason.DATA_PROBLEMS, fault, "Warning")
    created_at = next(
        (version.created_at for version in status.versions if version.name == name),
        draft.snapshot.now.replace(microsecond=0),
    )
    summary = DatasetVersionSummary(name=name, rows=rows, digest=prepared.dataset, created_at=created_at)
    splits = ", ".join(f"{split.rows} {split.name}" for split in prepared.splits)
    return Recorded(
        name,
        f"DatasetVersion {name} has {rows} rows ({splits}{f'; {comparison}' if comparison else ''})",
        {
            "latest_version": name,
            "store": store,
            "versions": (summary, *known)[:MAX_VERSIONS],
            "rows": rows,
            "format": prepared.format,
            "rule_version": prepared.rule_version,
            "difference": difference,
            "refresh": finish_check(dataset, draft.snapshot, prepared.sources),
            **row_fields(prepared),
        },
    )


def with_unread(
    known: tuple[Condition, ...], dataset: Dataset, prepared: PrepareResult | None, now: datetime
) -> tuple[Condition, ...]:
    """The conditions, with FieldsRead=False if nothing reads fields that have a meaning for training."""
    if prepared is None or prepared.unchanged:
        return known
    if not prepared.unread_fields:
        return conditions.drop_conditions(known, ConditionType.FIELDS_READ)
    message = (
        f"Nothing reads {', '.join(prepared.unread_fields)} of the rows, which may change what should be"
        " learned. status.warnings states what to do. Name a column in spec.keepColumns if it only describes"
        " the row."
    )
    return conditions.set_condition(
        known,
        ConditionType.FIELDS_READ,
        "False",
        Reason.FIELDS_IGNORED,
        conditions.shorten(message),
        generation=dataset.metadata.generation,
        now=now,
    )


def row_fields(prepared: PrepareResult) -> dict[str, Any]:
    """Fields of the status about the rows that were read, also if they are refused."""
    return {
        "problem_count": prepared.problem_count,
        "problems": select_problems(prepared),
        "warning_count": prepared.warning_count,
        "warnings": select_warnings(prepared),
        "report": _short_enough(prepared.report_uri),
    }


def _short_enough(text: str | None) -> str | None:
    return text if text is not None and len(text) <= MAX_TEXT_CHARACTERS else None


def _difference(dataset: Dataset, prepared: PrepareResult) -> VersionDifference | None:
    new = prepared.difference
    if new is None:
        return None
    return VersionDifference(
        previous=dataset_version_name(dataset.name, new.previous),
        added=new.added,
        removed=new.removed,
        changed=new.changed,
        sources=tuple(SourceDifference(**each.model_dump()) for each in new.sources) or None,
    )


def _comparison(difference: VersionDifference) -> str:
    text = f"{_counts(difference)} rows compared with {difference.previous}"
    if difference.sources is None:
        return text
    shown = [f"{each.uri} {_counts(each)}" for each in difference.sources[:MAX_NAMED_SOURCES]]
    more = len(difference.sources) - len(shown)
    return f"{text}: {', '.join(shown)}" + (f" and {more} more" if more else "")


def _counts(difference: VersionDifference | SourceDifference) -> str:
    return f"+{difference.added} −{difference.removed} ~{difference.changed}"
