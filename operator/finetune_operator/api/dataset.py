"""Dataset: a source of rows and how to prepare it; independent of any model."""

from datetime import datetime
from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import (
    MAX_PROBLEMS,
    Conditions,
    DeletionPolicy,
    Message,
    Model,
    Name,
    Resource,
    Rule,
    Status,
    name_rules,
)
from finetune_operator.api.preparation import DataPreparation
from finetune_operator.api.retrystatus import RetryStatus
from finetune_operator.api.storereference import StoreReference

MAX_VERSIONS: Final = 10


class Refresh(Model):
    """Look at the source again from time to time."""

    interval_seconds: Annotated[
        int,
        Field(
            ge=900,
            le=31536000,
            description="Seconds between two looks, 10 % more or less. What is new in the source becomes a"
            " DatasetVersion; a look that fails leaves the latest one in use.",
        ),
    ]


class DatasetSpec(DataPreparation):
    """Desired state of a Dataset; a change yields a new DatasetVersion."""

    store: Annotated[
        StoreReference | None, Field(description="Default: the default ComputeProfile's store.")
    ] = None
    refresh: Annotated[
        Refresh | None,
        Field(
            description="Poll the source for changes. Without it, and at once: set the annotation"
            " finetune.dev/refresh-requested to a value that it did not have."
        ),
    ] = None
    version_history_limit: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Number of most recent DatasetVersions to keep. Older ones are deleted, with their"
            " stored rows where their deletionPolicy is Delete, unless a run that has not ended uses them, a"
            " Checkpoint was trained on them, or anyone else has edited them. Absent: all are kept.",
        ),
    ] = None
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(
            description="Of its DatasetVersions. Delete: those that no run uses go with the Dataset, and"
            " their stored rows with them."
        ),
    ] = "Retain"


class DatasetVersionSummary(Model):
    """One entry of `Dataset.status.versions`, newest first."""

    name: Name
    rows: int
    digest: Annotated[str, Field(max_length=71)]
    created_at: datetime | None = None


class VersionDifference(Model):
    """The latest version beside the one before, in rows."""

    previous: Annotated[Name, Field(description="DatasetVersion that the latest one is compared with.")]
    added: Annotated[int, Field(description="Rows with an input that is new.")]
    removed: Annotated[int, Field(description="Rows with an input that is gone.")]
    changed: Annotated[int, Field(description="Rows with the same input and another answer.")]


class RefreshStatus(Model):
    """Looks at the source."""

    checks: Annotated[
        int, Field(description="Looks at the source with this spec, the first preparation included.")
    ] = 0
    checked_at: Annotated[datetime | None, Field(description="When the last of them ended.")] = None
    next_check_at: Annotated[datetime | None, Field(description="When the next one is due.")] = None
    source_version: Annotated[
        str | None,
        Field(
            description="The source's own mark of the content that was last read, such as an ETag; absent"
            " where its server has none, or where rows of it were refused."
        ),
    ] = None
    requested: Annotated[
        str | None, Field(description="Newest value of the annotation that was answered with a look.")
    ] = None


class DatasetStatus(Status):
    """Observed state of a Dataset."""

    phase: Annotated[str, Field(max_length=32)] = ""
    latest_version: str | None = None
    store: Annotated[str | None, Field(description="Store that the latest version was prepared in.")] = None
    format: str | None = None
    rows: int | None = None
    rule_version: Annotated[
        int | None,
        Field(description="Version of the rules by which the latest version was prepared. Absent: 1."),
    ] = None
    problem_count: Annotated[
        int | None,
        Field(description="Problems in rows that cannot be used, of the source as it was last read."),
    ] = None
    warning_count: Annotated[
        int | None, Field(description="Warnings on rows that are used all the same, and on all together.")
    ] = None
    versions: Annotated[tuple[DatasetVersionSummary, ...], Field(max_length=MAX_VERSIONS)] = ()
    problems: Annotated[
        tuple[Message, ...], Field(max_length=MAX_PROBLEMS, description="The first of them.")
    ] = ()
    warnings: Annotated[
        tuple[Message, ...], Field(max_length=MAX_PROBLEMS, description="The first of them.")
    ] = ()
    report: Annotated[
        str | None,
        Field(
            description="Page in the store with counts, examples and every kind of problem; report.json and"
            " problems.jsonl are beside it. Of a claim: kubectl cp it out of a pod that mounts the claim; of"
            " a bucket: copy it with the provider's tool. Then open it in a browser."
        ),
    ] = None
    difference: Annotated[VersionDifference | None, Field(description="Absent for the first version.")] = None
    refresh: RefreshStatus | None = None
    retry: Annotated[
        RetryStatus | None, Field(description="A preparation that is tried again; absent: none is.")
    ] = None
    trainer_contract: Annotated[
        int | None,
        Field(
            ge=1,
            description="Version of the contract that the newest prepare Job was made in. From 2 on, only a"
            " result that repeats the nonce of its Job is taken. Absent: 1.",
        ),
    ] = None
    conditions: Conditions = ()


class Dataset(Resource):
    """A source of training rows and how to prepare it."""

    rules: ClassVar[tuple[Rule, ...]] = name_rules("Dataset")

    kind: str = "Dataset"
    spec: DatasetSpec
    status: DatasetStatus = DatasetStatus()
