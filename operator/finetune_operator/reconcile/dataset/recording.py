"""A result of prepare: its DatasetVersion, and what status and events say of it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from finetune_operator.api.dataset import MAX_VERSIONS, Dataset, DatasetVersionSummary, VersionDifference
from finetune_operator.api.meta import Condition
from finetune_operator.manifests.labels import dataset_version_name
from finetune_operator.manifests.records import build_dataset_version
from finetune_operator.plan import Create
from finetune_operator.reconcile.dataset.sourcecheck import ended, prepared_in
from finetune_operator.reconcile.draft import Draft
from finetune_operator.status import conditions
from finetune_operator.status.finished import is_prepared
from finetune_operator.status.problems import faults, shown_problems, shown_warnings
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.results import PrepareResult
from finetune_trainer.contract.vocabulary import RULE_VERSION

TEXT_LIMIT: Final = 1024
"""Of a text in the status that is of no use when it is cut."""
INCOMPLETE: Final = (
    "prepare reports success but not what it made: check that the trainer image is of this release"
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The version that a result stands for."""

    name: str
    message: str
    """Of the condition Ready."""
    fields: dict[str, Any]
    """Of the status."""


def record(dataset: Dataset, draft: Draft, prepared: PrepareResult | None) -> Recorded | None:
    """Have the version recorded, unless it is; None where the result does not say what was made."""
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
        source=dataset.spec.source.uri,
        store=store,
        store_credentials=secret,
        deletion_policy=dataset.spec.deletion_policy,
    )
    draft.create.append(Create(manifest, same="Digest"))
    status = dataset.status
    is_latest = name == status.latest_version
    difference = status.difference if is_latest else _difference(dataset, prepared)
    rows = sum(split.rows for split in prepared.splits)
    beside = None if difference is None else _beside(difference)
    known = [version for version in status.versions if version.name != name]
    if len(known) == len(status.versions):
        said = f"DatasetVersion {name} with {rows} rows" + (f" ({beside})" if beside else "")
        draft.event(EventReason.DATASET_VERSION_CREATED, said)
    fault = faults(name, prepared)
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
        f"DatasetVersion {name} has {rows} rows ({splits}{f'; {beside}' if beside else ''})",
        {
            "latest_version": name,
            "store": store,
            "versions": (summary, *known)[:MAX_VERSIONS],
            "rows": rows,
            "format": prepared.format,
            "rule_version": prepared.rule_version,
            "difference": difference,
            "refresh": ended(dataset, draft.snapshot, _usable(prepared.source_version)),
            **found(prepared),
        },
    )


def labels_said(
    known: tuple[Condition, ...], dataset: Dataset, prepared: PrepareResult | None, now: datetime
) -> tuple[Condition, ...]:
    """The conditions, with LabelsRead False where rows have labels that the Dataset's rule does not read."""
    if prepared is None or prepared.unchanged:
        return known
    if not prepared.unread_labels:
        return conditions.without(known, ConditionType.LABELS_READ)
    rows = prepared.unread_labels
    return conditions.with_condition(
        known,
        ConditionType.LABELS_READ,
        "False",
        Reason.OLDER_RULE,
        f"{rows} row{'s have' if rows != 1 else ' has'} a label that may call the answer good or bad, and"
        f" rule version {prepared.rule_version}, with which this Dataset began, learns every answer. Set"
        f" spec.split.ruleVersion: {RULE_VERSION} to read the labels, or spec.format to keep what is read.",
        generation=dataset.metadata.generation,
        now=now,
    )


def found(prepared: PrepareResult) -> dict[str, Any]:
    """Fields of the status on the rows that were read, whether they are taken or not."""
    return {
        "problem_count": prepared.problem_count,
        "problems": shown_problems(prepared),
        "warning_count": prepared.warning_count,
        "warnings": shown_warnings(prepared),
        "report": _usable(prepared.report_uri),
    }


def _usable(text: str | None) -> str | None:
    return text if text is not None and len(text) <= TEXT_LIMIT else None


def _difference(dataset: Dataset, prepared: PrepareResult) -> VersionDifference | None:
    new = prepared.difference
    if new is None:
        return None
    return VersionDifference(
        previous=dataset_version_name(dataset.name, new.previous),
        added=new.added,
        removed=new.removed,
        changed=new.changed,
    )


def _beside(difference: VersionDifference) -> str:
    counts = f"+{difference.added} −{difference.removed} ~{difference.changed}"
    return f"{counts} rows beside {difference.previous}"
