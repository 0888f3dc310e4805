# SPDX-License-Identifier: Apache-2.0
"""Dataset: sources of rows and how to prepare them; independent of any model."""

from datetime import datetime
from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import (
    MAX_PROBLEMS,
    CELRule,
    Conditions,
    DeletionPolicy,
    Message,
    Model,
    Name,
    Resource,
    Status,
    Uri,
    name_rules,
)
from finetune_operator.api.preparation import MAX_SOURCES, PREPARATION_RULES, DataPreparation, RowSource
from finetune_operator.api.retrystatus import RetryStatus
from finetune_operator.api.storereference import OwnStoreReference

MAX_VERSIONS: Final = 10


class Refresh(Model):
    """Periodic re-checks of the sources."""

    interval_seconds: Annotated[
        int,
        Field(
            ge=900,
            le=31536000,
            description="Seconds between two re-checks of the sources, ± 10 %. Changed rows become a new"
            " DatasetVersion. If a re-check fails, the latest version stays in use.",
        ),
    ]


class _Sources(Model):
    sources: Annotated[
        tuple[RowSource, ...],
        Field(
            min_length=1,
            max_length=MAX_SOURCES,
            description="Sources of rows, read in this order; of equal rows, the first stays. Formats may"
            " differ if all rows have one form: prompts with answers or chats, preferences, or answers with"
            " labels.",
        ),
    ]


class DatasetSpec(DataPreparation, _Sources):
    """Desired state of a Dataset. A change of the sources or the preparation creates a new DatasetVersion."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *PREPARATION_RULES,
        CELRule(
            "!has(self.template) || self.sources.all(one, !has(one.columns) || !has(one.columns.prompt))",
            "template and columns.prompt of a source exclude each other: both define the prompt; remove one",
            "template",
        ),
    )

    store: Annotated[
        OwnStoreReference | None,
        Field(description="Store of the DatasetVersions. Default: the store of the default ComputeProfile."),
    ] = None
    refresh: Annotated[
        Refresh | None,
        Field(
            description="Periodic re-checks of the sources. Default: none. For a re-check at once, with or"
            " without this field, set the annotation finetune.dev/refresh-requested to a new value."
        ),
    ] = None
    version_history_limit: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Number of most recent DatasetVersions to keep. Older ones are deleted, with their"
            " stored rows if their deletionPolicy is Delete. A version stays if an unfinished run uses it,"
            " if a Checkpoint was trained on it, or if anyone except the operator has edited it. Default:"
            " all are kept.",
        ),
    ] = None
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(
            description="What happens to the DatasetVersions when the Dataset is deleted. Retain: they stay."
            " Delete: those that no unfinished run uses are deleted, with their stored rows."
        ),
    ] = "Retain"


class DatasetVersionSummary(Model):
    """Entry for one DatasetVersion."""

    name: Annotated[Name, Field(description="Name of the DatasetVersion.")]
    rows: Annotated[int, Field(description="Number of rows in all splits.")]
    digest: Annotated[str, Field(max_length=71, description="Digest of the DatasetVersion.")]
    created_at: Annotated[
        datetime | None, Field(description="Time at which the DatasetVersion was created.")
    ] = None


class SourceDifference(Model):
    """Rows of one source that differ. A changed row counts for the source that it has now."""

    uri: Annotated[Uri, Field(description="URI of the source, without the query of a web address.")]
    added: Annotated[int, Field(description="Number of rows with a new input.")]
    removed: Annotated[int, Field(description="Number of rows whose input no longer exists.")]
    changed: Annotated[int, Field(description="Number of rows with the same input and another answer.")]


class VersionDifference(Model):
    """Difference between the latest version and the previous one, in rows. Absent for the first version."""

    previous: Annotated[Name, Field(description="DatasetVersion that the latest one is compared with.")]
    added: Annotated[int, Field(description="Number of rows with a new input.")]
    removed: Annotated[int, Field(description="Number of rows whose input no longer exists.")]
    changed: Annotated[int, Field(description="Number of rows with the same input and another answer.")]
    sources: Annotated[
        tuple[SourceDifference, ...] | None,
        Field(
            max_length=2 * MAX_SOURCES,
            description="Sources with a difference. Absent: both versions have one source, or the origin of"
            " their rows is unknown.",
        ),
    ] = None


class CheckedSource(Model):
    """One source, as the last check found it."""

    uri: Annotated[Uri, Field(description="URI of the source, without the query of a web address.")]
    version: Annotated[
        str | None,
        Field(
            description="Version of the content that was last read, as the source's server reports it, such"
            " as an ETag. Absent: the server reports none, or rows were rejected."
        ),
    ] = None


class RefreshStatus(Model):
    """Re-checks of the sources."""

    checks: Annotated[
        int,
        Field(description="Number of checks of the sources with this spec, including the first preparation."),
    ] = 0
    checked_at: Annotated[datetime | None, Field(description="Time at which the last check ended.")] = None
    next_check_at: Annotated[datetime | None, Field(description="Time at which the next check is due.")] = (
        None
    )
    sources: Annotated[
        tuple[CheckedSource, ...] | None,
        Field(
            max_length=MAX_SOURCES,
            description="Sources in the order of the spec. If all of them still have these versions, a check"
            " reads no rows. Absent: rows were rejected.",
        ),
    ] = None
    requested: Annotated[
        str | None,
        Field(
            description="Last value of the annotation finetune.dev/refresh-requested that a check has"
            " answered."
        ),
    ] = None


class DatasetStatus(Status):
    """Observed state of a Dataset."""

    phase: Annotated[
        str,
        Field(
            max_length=32,
            description="Summary of the conditions for users. Programs must read the conditions instead.",
        ),
    ] = ""
    latest_version: Annotated[str | None, Field(description="Newest DatasetVersion.")] = None
    store: Annotated[str | None, Field(description="Store of the latest version.")] = None
    format: Annotated[str | None, Field(description="Formats of the sources, detected or from the spec.")] = (
        None
    )
    rows: Annotated[int | None, Field(description="Number of rows in all splits of the latest version.")] = (
        None
    )
    rule_version: Annotated[
        int | None,
        Field(description="Version of the rules that prepared the latest version."),
    ] = None
    problem_count: Annotated[
        int | None,
        Field(description="Number of problems in unusable rows, at the last read of the sources."),
    ] = None
    warning_count: Annotated[
        int | None, Field(description="Number of warnings about usable rows, and about all rows together.")
    ] = None
    versions: Annotated[
        tuple[DatasetVersionSummary, ...],
        Field(max_length=MAX_VERSIONS, description="Most recent DatasetVersions, newest first."),
    ] = ()
    problems: Annotated[
        tuple[Message, ...], Field(max_length=MAX_PROBLEMS, description="First problems.")
    ] = ()
    warnings: Annotated[
        tuple[Message, ...], Field(max_length=MAX_PROBLEMS, description="First warnings.")
    ] = ()
    report: Annotated[
        str | None,
        Field(
            description="URI of the HTML report in the store, with counts, examples and all kinds of"
            " problems. report.json and problems.jsonl are next to it. Copy it from a claim with kubectl cp"
            " out of a pod that mounts the claim, or from a bucket with the provider's tool, and open it in"
            " a browser."
        ),
    ] = None
    difference: VersionDifference | None = None
    refresh: RefreshStatus | None = None
    retry: RetryStatus | None = None
    conditions: Conditions = ()


class Dataset(Resource):
    """Sources of training rows and how to prepare them."""

    rules: ClassVar[tuple[CELRule, ...]] = name_rules("Dataset")

    kind: str = "Dataset"
    spec: DatasetSpec
    status: DatasetStatus = DatasetStatus()
