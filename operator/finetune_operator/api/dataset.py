"""Dataset: a source of rows and how to prepare it; independent of any model."""

from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import (
    Conditions,
    DeletionPolicy,
    Message,
    Model,
    Name,
    Resource,
    Rule,
    SecretReference,
    StoreUri,
    Uri,
    name_rules,
    pattern_advice,
)
from finetune_operator.api.retrystatus import RetryStatus
from finetune_trainer.contract.vocabulary import RULE_VERSION, DataFormat, Finding, NearDuplicates

Column = Annotated[str, Field(min_length=1, max_length=128)]
COUNTRY: Final = r"^[A-Z]{2}$"

SOURCE_RULE = Rule(
    "self.uri.startsWith('configmap://') || self.uri.startsWith('pvc://') || self.uri.startsWith('hf://')"
    " || self.uri.startsWith('s3://') || self.uri.startsWith('gs://') || self.uri.startsWith('abfs://')"
    " || self.uri.startsWith('https://')",
    "uri must begin with configmap://, pvc://, hf://, s3://, gs://, abfs:// or https://,"
    " for example configmap://tickets/rows.jsonl or pvc://data/tickets.csv",
    "uri",
)

# Whoever may read the object, its Jobs or an audit log would read them. An object that has them already can
# still be changed: the API server does not judge a value again that stays the same.
NO_USER_RULE = Rule(
    "!self.uri.matches('^https://[^/?#]*@')",
    "uri must not contain a user name or password: put them as keys username and password into a Secret of"
    " type finetune.dev/credentials and name it in credentialsSecretRef",
    "uri",
)


class DataSource(Model):
    """Where the rows are."""

    rules: ClassVar[tuple[Rule, ...]] = (SOURCE_RULE, NO_USER_RULE)

    uri: Annotated[
        Uri,
        Field(
            description="configmap://NAME/KEY or pvc://CLAIM/PATH in the same namespace, or over the network:"
            " hf://datasets/ORG/NAME/PATH (after NAME an @ and a revision, if wanted), s3://BUCKET/PATH,"
            " gs://BUCKET/PATH, abfs://CONTAINER/PATH, https://HOST/PATH. PATH is a file, a folder of files,"
            " or has *, ? or […] in its last part: pvc://data/rows-*.jsonl, configmap://rows/*.jsonl; at"
            " https:// it is one file. Several files are read in the order of their names; .gz and .zst are"
            " unpacked."
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
    chosen: Annotated[
        Column | None, Field(description="Column of the better of two answers; default `chosen`.")
    ] = None
    rejected: Annotated[
        Column | None, Field(description="Column of the worse of two answers; default `rejected`.")
    ] = None
    label: Annotated[
        Column | None, Field(description="Column that says whether an answer is good; default `label`.")
    ] = None


class Cleaning(Model):
    """Changes made to rows after they were divided. Exact duplicates, and training rows that a held-out row
    repeats, are always left out."""

    normalize_whitespace: Annotated[
        bool,
        Field(
            description="Of spaces and tabs in a row one stays, of empty lines one; those at the ends of"
            " lines and texts go."
        ),
    ] = False
    normalize_unicode: Annotated[bool, Field(description="Normalize to Unicode NFC.")] = False
    near_duplicates: Annotated[
        NearDuplicates,
        Field(
            description="Off: they are not looked for. Keep: they are counted and reported, and training rows"
            " that nearly repeat a held-out row and have its answer are left out. Remove: the same, and of"
            " near duplicates only the first stays."
        ),
    ] = "Keep"
    max_rows_for_near_duplicates: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000,
            description="With more rows near duplicates are not looked for, because that takes memory.",
        ),
    ] = 200_000


class Checks(Model):
    """What is looked for in texts. Off: nothing. Warn: it is reported. Redact: a placeholder such as
    `[EMAIL]` takes its place. Fail: its row counts as invalid."""

    secrets: Annotated[
        Finding, Field(description="Passwords, tokens and private keys, as detect-secrets finds them.")
    ] = "Warn"
    email_addresses: Annotated[Finding, Field(description="E-mail addresses.")] = "Off"
    payment_cards: Annotated[
        Finding, Field(description="Numbers of payment cards whose check digit is right.")
    ] = "Warn"
    ibans: Annotated[
        Finding, Field(description="International bank account numbers whose check digits are right.")
    ] = "Warn"
    phone_numbers: Annotated[Finding, Field(description="Phone numbers that can exist.")] = "Off"
    phone_region: Annotated[
        str | None,
        Field(
            pattern=COUNTRY,
            min_length=2,
            max_length=2,
            description="Country of phone numbers without a country code, for example DE; absent: only"
            " numbers that begin with + are found.",
            json_schema_extra=pattern_advice(
                COUNTRY, "write the two capital letters of a country, for example DE"
            ),
        ),
    ] = None


class Split(Model):
    """How rows are divided. A row's split hangs on its input side only, so a growing dataset moves no row."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.validation + self.test < 1.0",
            "split.validation + split.test must stay below 1, so that rows are left to train on: lower one",
        ),
        Rule(
            "(has(self.column) ? 1 : 0) + (has(self.groupBy) ? 1 : 0) + (self.fromFiles ? 1 : 0) <= 1",
            "split.column, split.fromFiles and split.groupBy exclude each other: keep one. The first two take"
            " the division as it is, groupBy keeps rows together where it is made here",
        ),
    )

    validation: Annotated[float, Field(ge=0, lt=1, description="Fraction of rows for validation.")] = 0.1
    test: Annotated[float, Field(ge=0, lt=1, description="Fraction of rows held out for evaluation.")] = 0.1
    seed: Annotated[int, Field(ge=0, le=2147483647, description="Another seed makes another division.")] = 0
    group_by: Annotated[
        Column | None,
        Field(description="Rows with the same value in this column land in the same split."),
    ] = None
    column: Annotated[
        Column | None,
        Field(
            description="Column that says train, validation or test; the fractions and the seed then decide"
            " nothing."
        ),
    ] = None
    from_files: Annotated[
        bool,
        Field(
            description="The files' names say it (train.jsonl, validation.jsonl, test.jsonl); the fractions"
            " and the seed then decide nothing."
        ),
    ] = False
    rule_version: Annotated[
        int | None,
        Field(
            ge=1,
            le=RULE_VERSION,
            description="Version of the rules by which rows are read and compared; docs/data.md lists them."
            " Default: the version of the Dataset's first DatasetVersion, and the newest one for a new"
            " Dataset.",
        ),
    ] = None


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


class DataPreparation(Model):
    """A source and how to prepare it: the whole of a Dataset that decides its rows."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.maxInvalidFraction) || self.onInvalidRows == 'Drop'",
            "maxInvalidFraction needs onInvalidRows: Drop; with Fail the first invalid row already stops",
            "maxInvalidFraction",
        ),
        Rule(
            "!has(self.template) || !has(self.columns) || !has(self.columns.prompt)",
            "template and columns.prompt exclude each other: both say what the prompt is; remove one",
            "template",
        ),
    )

    source: DataSource
    format: Annotated[
        DataFormat | None,
        Field(description="Absent: detected from the content and named in the status."),
    ] = None
    columns: Annotated[
        Columns | None, Field(description="Column mapping, for tables and for JSON fields.")
    ] = None
    template: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=4096,
            description="Makes the prompt of several columns: a text with {COLUMN} for each, for example"
            ' "{subject}\\n{body}"; {{ and }} are braces.',
        ),
    ] = None
    cleaning: Annotated[Cleaning | None, Field(description="Cleaning steps; absent: the defaults.")] = None
    checks: Annotated[
        Checks | None, Field(description="Secrets and personal data; absent: the defaults.")
    ] = None
    split: Annotated[Split, Field(description="Division into train, validation and test.")] = Split()
    on_invalid_rows: Annotated[
        Literal["Fail", "Drop"],
        Field(description="Fail: an invalid row stops the run. Drop: it is left out and reported."),
    ] = "Fail"
    max_invalid_fraction: Annotated[
        float | None,
        Field(ge=0, le=1, description="With Drop: the largest fraction of rows that may be dropped."),
    ] = None
    max_unpacked_bytes: Annotated[
        int | None,
        Field(
            ge=1 << 20,
            le=1 << 44,
            description="Maximum size in bytes of the source's files together, unpacked, and of the rows made"
            " of them; a larger source fails with SourceTooLarge. Default: 68719476736 (64 GiB).",
        ),
    ] = None


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


class DatasetStatus(Model):
    """Observed state of a Dataset."""

    observed_generation: int = -1
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
    versions: Annotated[tuple[DatasetVersionSummary, ...], Field(max_length=10)] = ()
    problems: Annotated[tuple[Message, ...], Field(max_length=10, description="The first of them.")] = ()
    warnings: Annotated[tuple[Message, ...], Field(max_length=10, description="The first of them.")] = ()
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
