"""DatasetVersion: the immutable, content-addressed record of prepared rows."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import (
    Conditions,
    DeletionPolicy,
    Digest,
    Model,
    Name,
    Resource,
    Rule,
    ShortName,
    Status,
    Uri,
    immutable_rules,
)
from finetune_trainer.contract.vocabulary import SplitName

MAX_LOCATIONS: Final = 5


class SplitRecord(Model):
    """One split of the version."""

    name: SplitName
    rows: Annotated[int, Field(ge=0)]
    digest: Digest


class SourceRecord(Model):
    """Where the rows were first read from."""

    uri: Annotated[Uri, Field(description="Without the query of a web address.")]
    revision: Annotated[str | None, Field(max_length=64, description="Commit at the hub.")] = None


class DatasetStatistics(Model):
    """Facts about the content, in rows and characters."""

    source_rows: Annotated[int, Field(ge=0)] = 0
    invalid_rows: Annotated[int, Field(ge=0)] = 0
    duplicate_rows: Annotated[int, Field(ge=0)] = 0
    near_duplicate_rows: Annotated[
        int, Field(ge=0, description="Found; left out where cleaning.nearDuplicates is Remove.")
    ] = 0
    leaked_rows: Annotated[
        int, Field(ge=0, description="Left out of training, because a held-out row says the same or nearly.")
    ] = 0
    conflicting_rows: Annotated[
        int, Field(ge=0, description="Kept, with the input of another row and another answer.")
    ] = 0
    prompt_characters_mean: Annotated[float, Field(ge=0)] = 0
    prompt_characters_max: Annotated[int, Field(ge=0)] = 0
    completion_characters_mean: Annotated[float, Field(ge=0)] = 0
    completion_characters_max: Annotated[int, Field(ge=0)] = 0
    distinct_completions: Annotated[int, Field(ge=0)] = 0
    untested_answers: Annotated[
        int | None,
        Field(
            ge=0,
            description="Distinct completions that have rows to train on and no row in the test split: scores"
            " say nothing of them. Absent: none, or the completions are not labels.",
        ),
    ] = None


class _DatasetVersionFields(Model):
    dataset: Annotated[
        ShortName, Field(description="The Dataset, or the FineTuneJob with inline data, it came from.")
    ]
    digest: Annotated[Digest, Field(description="SHA-256 of the version's manifest.")]
    source: Annotated[
        SourceRecord | None, Field(description="Equal rows from elsewhere are the same version.")
    ] = None
    source_digest: Annotated[Digest, Field(description="SHA-256 of the source's bytes.")]
    preparation_digest: Annotated[Digest, Field(description="SHA-256 of the preparation's settings.")]
    format: Annotated[str, Field(max_length=32, description="The format that was detected or given.")]
    rule_version: Annotated[
        int | None,
        Field(ge=1, description="Version of the rules by which rows were read and compared. Absent: 1."),
    ] = None
    rows: Annotated[int, Field(ge=0, description="Rows in all splits.")]
    splits: Annotated[tuple[SplitRecord, ...], Field(max_length=3)]
    statistics: DatasetStatistics = DatasetStatistics()
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(description="MUTABLE. Delete: the stored rows go with this record, once nothing needs them."),
    ] = "Retain"


class DatasetVersionSpec(_DatasetVersionFields):
    """Content facts only; written by the operator."""

    rules: ClassVar[tuple[Rule, ...]] = immutable_rules(
        _DatasetVersionFields,
        mutable=frozenset({"deletionPolicy"}),
        advice="a DatasetVersion is a record of content: change the Dataset and a new version is made",
    )


class DatasetVersionStatus(Status):
    """Where the content can be read."""

    locations: Annotated[tuple[Uri, ...], Field(max_length=MAX_LOCATIONS)] = ()
    conditions: Conditions = ()


class DatasetVersion(Resource):
    """An immutable record of prepared rows."""

    kind: str = "DatasetVersion"
    spec: DatasetVersionSpec
    status: DatasetVersionStatus = DatasetVersionStatus()


__all__ = [
    "DatasetStatistics",
    "DatasetVersion",
    "DatasetVersionSpec",
    "DatasetVersionStatus",
    "Name",
    "SourceRecord",
    "SplitRecord",
]
