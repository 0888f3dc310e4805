# SPDX-License-Identifier: Apache-2.0
"""DatasetVersion: the immutable, content-addressed record of prepared rows."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import (
    CELRule,
    Conditions,
    DeletionPolicy,
    Digest,
    Model,
    Name,
    Resource,
    ShortName,
    Status,
    Uri,
    immutable_rules,
)
from finetune_trainer.contract.vocabulary import SplitName

MAX_LOCATIONS: Final = 5


class SplitRecord(Model):
    """One split of the version."""

    name: Annotated[SplitName, Field(description="Name of the split.")]
    rows: Annotated[int, Field(ge=0, description="Number of rows in the split.")]
    digest: Annotated[Digest, Field(description="SHA-256 of the split's file.")]


class SourceRecord(Model):
    """Source that the rows were first read from."""

    uri: Annotated[Uri, Field(description="URI of the source, without the query of a web address.")]
    revision: Annotated[str | None, Field(max_length=64, description="Commit of a source at the hub.")] = None


class DatasetStatistics(Model):
    """Statistics of the content. Lengths are in characters."""

    source_rows: Annotated[int, Field(ge=0, description="Number of rows in the source.")] = 0
    invalid_rows: Annotated[int, Field(ge=0, description="Number of invalid rows.")] = 0
    duplicate_rows: Annotated[
        int, Field(ge=0, description="Number of exact duplicates, which were removed.")
    ] = 0
    near_duplicate_rows: Annotated[
        int,
        Field(
            ge=0,
            description="Number of near duplicates. They were removed if cleaning.nearDuplicates is Remove.",
        ),
    ] = 0
    leaked_rows: Annotated[
        int,
        Field(
            ge=0,
            description="Number of rows that were removed from training because a held-out row is the same"
            " or nearly the same.",
        ),
    ] = 0
    conflicting_rows: Annotated[
        int,
        Field(
            ge=0,
            description="Number of rows with the input of another row and another answer. They were kept.",
        ),
    ] = 0
    prompt_characters_mean: Annotated[
        float, Field(ge=0, description="Mean length of the prompts, in characters.")
    ] = 0
    prompt_characters_max: Annotated[
        int, Field(ge=0, description="Max length of the prompts, in characters.")
    ] = 0
    completion_characters_mean: Annotated[
        float, Field(ge=0, description="Mean length of the completions, in characters.")
    ] = 0
    completion_characters_max: Annotated[
        int, Field(ge=0, description="Max length of the completions, in characters.")
    ] = 0
    distinct_completions: Annotated[int, Field(ge=0, description="Number of distinct completions.")] = 0
    untested_answers: Annotated[
        int | None,
        Field(
            ge=0,
            description="Number of distinct completions that occur in training rows and in no row of the"
            " test split. Scores do not cover them. Absent: none, or the completions are not labels.",
        ),
    ] = None


class _DatasetVersionFields(Model):
    dataset: Annotated[
        ShortName, Field(description="Dataset, or FineTuneJob with inline data, that the version came from.")
    ]
    digest: Annotated[Digest, Field(description="SHA-256 of the version's manifest.")]
    source: Annotated[
        SourceRecord | None,
        Field(
            description="Source that the rows were first read from. Equal rows from another source are the"
            " same version."
        ),
    ] = None
    source_digest: Annotated[Digest, Field(description="SHA-256 of the source's bytes.")]
    preparation_digest: Annotated[Digest, Field(description="SHA-256 of the preparation's settings.")]
    format: Annotated[
        str, Field(max_length=32, description="Format of the source, detected or from the spec.")
    ]
    rule_version: Annotated[
        int,
        Field(
            ge=1,
            description="Version of the rules for reading and comparing rows. Later versions of the Dataset"
            " keep it.",
        ),
    ]
    group_by: Annotated[
        str | None,
        Field(
            max_length=128,
            description="Column of the source whose rows are together in one split, from split.groupBy. An"
            " evaluation counts them as one. Absent: none.",
        ),
    ] = None
    rows: Annotated[int, Field(ge=0, description="Number of rows in all splits.")]
    splits: Annotated[tuple[SplitRecord, ...], Field(max_length=3, description="Splits of the version.")]
    statistics: DatasetStatistics = DatasetStatistics()
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(
            description="What happens to the stored rows when this record is deleted. Retain: they stay."
            " Delete: they are deleted, once nothing needs them. Mutable."
        ),
    ] = "Retain"


class DatasetVersionSpec(_DatasetVersionFields):
    """Facts about the content, written by the operator. Immutable except `deletionPolicy`."""

    rules: ClassVar[tuple[CELRule, ...]] = immutable_rules(
        _DatasetVersionFields,
        mutable=frozenset({"deletionPolicy"}),
        advice="a DatasetVersion is a record of content: change the Dataset to create a new version",
    )


class DatasetVersionStatus(Status):
    """Locations of the content."""

    locations: Annotated[
        tuple[Uri, ...], Field(max_length=MAX_LOCATIONS, description="URIs of the folders with the content.")
    ] = ()
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
