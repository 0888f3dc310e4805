# SPDX-License-Identifier: Apache-2.0
"""DatasetVersion: the immutable, content-addressed record of prepared rows."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.dataset import MAX_SOURCES
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
from finetune_trainer.contract.results import DataStatisticsFields
from finetune_trainer.contract.vocabulary import SourceSplits, SplitName

MAX_LOCATIONS: Final = 5


class SplitRecord(Model):
    """One split of the version."""

    name: Annotated[SplitName, Field(description="Name of the split.")]
    rows: Annotated[int, Field(ge=0, description="Number of rows in the split.")]
    digest: Annotated[Digest, Field(description="SHA-256 of the split's file.")]


class SourceRecord(Model):
    """Source that rows were first read from. In each split, its rows follow those of earlier sources."""

    uri: Annotated[Uri, Field(description="URI of the source, without the query of a web address.")]
    revision: Annotated[str | None, Field(max_length=64, description="Commit of a source at the hub.")] = None
    format: Annotated[
        str | None, Field(max_length=32, description="Format of the source, detected or from the spec.")
    ] = None
    splits: Annotated[
        SourceSplits, Field(description="Splits that rows of the source can be in, as in the Dataset.")
    ] = "All"
    train: Annotated[int, Field(ge=0, description="Number of its rows in the train split.")] = 0
    validation: Annotated[int, Field(ge=0, description="Number of its rows in the validation split.")] = 0
    test: Annotated[int, Field(ge=0, description="Number of its rows in the test split.")] = 0


class DatasetStatistics(DataStatisticsFields, Model):
    """Statistics of the content. Lengths are in characters."""

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
        ShortName, Field(description="Dataset, or FineTuneJob with dataset.source, of the version.")
    ]
    digest: Annotated[Digest, Field(description="SHA-256 of the version's manifest.")]
    sources: Annotated[
        tuple[SourceRecord, ...],
        Field(
            max_length=MAX_SOURCES,
            description="Sources that the rows were first read from, in the order of reading. Equal rows from"
            " other sources are the same version.",
        ),
    ] = ()
    source_digest: Annotated[Digest, Field(description="SHA-256 of the bytes of all sources.")]
    preparation_digest: Annotated[Digest, Field(description="SHA-256 of the preparation's settings.")]
    format: Annotated[
        str, Field(max_length=128, description="Formats of the sources, detected or from the spec.")
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
