"""Dataset: a source of rows and how to prepare it; independent of any model."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_operator.api.meta import (
    Conditions,
    DeletionPolicy,
    Message,
    Model,
    Name,
    Reserved,
    ReservedValues,
    Resource,
    Rule,
    SecretReference,
    StoreUri,
    Uri,
    name_rules,
)

Column = Annotated[str, Field(min_length=1, max_length=128)]

SOURCE_RULE = Rule(
    "self.uri.startsWith('configmap://') || self.uri.startsWith('pvc://') || self.uri.startsWith('hf://')"
    " || self.uri.startsWith('s3://') || self.uri.startsWith('gs://') || self.uri.startsWith('abfs://')"
    " || self.uri.startsWith('https://')",
    "uri must begin with configmap://, pvc://, hf://, s3://, gs://, abfs:// or https://,"
    " for example configmap://tickets/rows.jsonl or pvc://data/tickets.csv",
    "uri",
)


class DataSource(Model):
    """Where the rows are."""

    rules: ClassVar[tuple[Rule, ...]] = (SOURCE_RULE,)

    uri: Annotated[
        Uri,
        Field(
            description="configmap://NAME/KEY or pvc://CLAIM/PATH in the same namespace, or over the network:"
            " hf://datasets/ORG/NAME/PATH (after NAME an @ and a revision, if wanted), s3://BUCKET/PATH,"
            " gs://BUCKET/PATH, abfs://CONTAINER/PATH, https://HOST/PATH."
        ),
    ]
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(description="Secret of type finetune.dev/credentials with what the source's server asks for."),
    ] = None


class Columns(Model):
    """Which column or field holds what; names as in the file."""

    prompt: Annotated[Column | None, Field(description="Column of the prompt; default `prompt`.")] = None
    completion: Annotated[
        Column | None, Field(description="Column of the completion; default `completion`.")
    ] = None
    messages: Annotated[
        Column | None, Field(description="Column of the chat messages; default `messages`.")
    ] = None


class Cleaning(Model):
    """Changes made to rows before they are split into files. Exact duplicates are always removed."""

    normalize_whitespace: Annotated[
        bool | None, Reserved(), Field(description="Collapse runs of white space.")
    ] = None
    normalize_unicode: Annotated[bool | None, Reserved(), Field(description="Normalize to Unicode NFC.")] = (
        None
    )
    near_duplicates: Annotated[
        Literal["Keep", "Remove"] | None, Reserved(), Field(description="What to do with near duplicates.")
    ] = None


class Split(Model):
    """How rows are divided. A row's split hangs on its input side only, so a growing dataset moves no row."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.validation + self.test < 1.0",
            "split.validation + split.test must stay below 1, so that rows are left to train on: lower one",
        ),
    )

    validation: Annotated[float, Field(ge=0, lt=1, description="Fraction of rows for validation.")] = 0.1
    test: Annotated[float, Field(ge=0, lt=1, description="Fraction of rows held out for evaluation.")] = 0.1
    seed: Annotated[int, Field(ge=0, le=2147483647, description="Another seed makes another division.")] = 0
    group_by: Annotated[
        Column | None,
        Field(description="Rows with the same value in this column land in the same split."),
    ] = None


class Refresh(Model):
    """Look at the source again from time to time."""

    interval_seconds: Annotated[int, Field(ge=900, le=31536000, description="Seconds between two looks.")]


class StoreReference(Model):
    """Where datasets, base models, checkpoints and run state are kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.uri.startsWith('pvc://') || self.uri.startsWith('s3://') || self.uri.startsWith('gs://')"
            " || self.uri.startsWith('abfs://')",
            "uri must begin with pvc://, s3://, gs:// or abfs://, for example pvc://artifacts; for an object"
            " store of your own write s3://BUCKET/FOLDER and put its https:// address as endpoint into the"
            " credentials Secret",
            "uri",
        ),
    )

    uri: Annotated[
        StoreUri,
        Field(
            description="pvc://CLAIM or pvc://CLAIM/FOLDER in the same namespace, or s3://BUCKET/FOLDER,"
            " gs://BUCKET/FOLDER, abfs://CONTAINER/FOLDER."
        ),
    ]
    credentials_secret_ref: Annotated[
        SecretReference | None, Field(description="Secret with the store's credentials.")
    ] = None


DataFormat = Literal[
    "PromptCompletion",
    "ChatMessages",
    "CSV",
    "TSV",
    "Parquet",
    "Alpaca",
    "ShareGPT",
    "LabelStudio",
    "Doccano",
    "Preference",
    "KTO",
]
RESERVED_FORMATS = ReservedValues.of(
    "TSV", "Parquet", "Alpaca", "ShareGPT", "LabelStudio", "Doccano", "Preference", "KTO"
)


class DataPreparation(Model):
    """A source and how to prepare it: the whole of a Dataset that decides its rows."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.maxInvalidFraction) || self.onInvalidRows == 'Drop'",
            "maxInvalidFraction needs onInvalidRows: Drop; with Fail the first invalid row already stops",
            "maxInvalidFraction",
        ),
    )

    source: DataSource
    format: Annotated[
        DataFormat | None,
        RESERVED_FORMATS,
        Field(description="Absent: detected from the content and named in the status."),
    ] = None
    columns: Annotated[Columns | None, Field(description="Column mapping, for CSV and for JSON fields.")] = (
        None
    )
    template: Annotated[
        str | None,
        Reserved(),
        Field(max_length=4096, description="Text template from columns to the prompt."),
    ] = None
    cleaning: Annotated[Cleaning | None, Field(description="Optional cleaning steps.")] = None
    split: Annotated[Split, Field(description="Division into train, validation and test.")] = Split()
    on_invalid_rows: Annotated[
        Literal["Fail", "Drop"],
        Field(description="Fail: an invalid row stops the run. Drop: it is left out and reported."),
    ] = "Fail"
    max_invalid_fraction: Annotated[
        float | None,
        Field(ge=0, le=1, description="With Drop: the largest fraction of rows that may be dropped."),
    ] = None


class DatasetSpec(DataPreparation):
    """Desired state of a Dataset; a change yields a new DatasetVersion."""

    store: Annotated[
        StoreReference | None, Field(description="Default: the default ComputeProfile's store.")
    ] = None
    refresh: Annotated[Refresh | None, Reserved(), Field(description="Poll the source for changes.")] = None
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


class DatasetStatus(Model):
    """Observed state of a Dataset."""

    observed_generation: int = -1
    phase: Annotated[str, Field(max_length=32)] = ""
    latest_version: str | None = None
    store: Annotated[str | None, Field(description="Store that the latest version was prepared in.")] = None
    format: str | None = None
    rows: int | None = None
    problem_count: int | None = None
    versions: Annotated[tuple[DatasetVersionSummary, ...], Field(max_length=10)] = ()
    problems: Annotated[tuple[Message, ...], Field(max_length=10)] = ()
    conditions: Conditions = ()


class Dataset(Resource):
    """A source of training rows and how to prepare it."""

    rules: ClassVar[tuple[Rule, ...]] = name_rules("Dataset")

    kind: str = "Dataset"
    spec: DatasetSpec
    status: DatasetStatus = DatasetStatus()
