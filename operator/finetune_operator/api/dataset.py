# SPDX-License-Identifier: Apache-2.0
"""Dataset: sources of rows and how to prepare them; independent of any model."""

from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import (
    MAX_PROBLEMS,
    CELRule,
    Conditions,
    DeletionPolicy,
    Message,
    Model,
    Name,
    Phase,
    Resource,
    SecretReference,
    Status,
    Uri,
    name_rules,
    pattern_advice,
)
from finetune_operator.api.references import OwnStoreReference
from finetune_operator.api.stage_status import RetryStatus
from finetune_trainer.contract.vocabulary import DataFormat, Finding, NearDuplicates, SourceSplits

Column = Annotated[str, Field(min_length=1, max_length=128)]
COUNTRY: Final = r"^[A-Z]{2}$"
MAX_SOURCES: Final = 8
SOURCE_RULE = CELRule(
    "self.uri.startsWith('configmap://') || self.uri.startsWith('pvc://') || self.uri.startsWith('hf://')"
    " || self.uri.startsWith('s3://') || self.uri.startsWith('gs://') || self.uri.startsWith('abfs://')"
    " || self.uri.startsWith('https://')",
    "uri must begin with configmap://, pvc://, hf://, s3://, gs://, abfs:// or https://,"
    " for example configmap://tickets/rows.jsonl or pvc://data/tickets.csv",
    "uri",
)


# Everyone who may read the object, its Jobs or an audit log could read the password.
NO_USER_RULE = CELRule(
    "!self.uri.matches('^https://[^/?#]*@')",
    "uri must not contain a user name or password: put them as keys username and password into a Secret and"
    " name it in credentialsSecretRef",
    "uri",
)


class DataSource(Model):
    """Location of the rows."""

    rules: ClassVar[tuple[CELRule, ...]] = (SOURCE_RULE, NO_USER_RULE)

    uri: Annotated[
        Uri,
        Field(
            description="Location of the rows: configmap://NAME/KEY or pvc://CLAIM/PATH in the same"
            " namespace, hf://datasets/ORG/NAME/PATH (NAME@REVISION for a revision), s3://BUCKET/PATH,"
            " gs://BUCKET/PATH, abfs://CONTAINER/PATH or https://HOST/PATH. PATH is a file, a folder of"
            " files, or a pattern with *, ? or […] in its last part, such as pvc://data/rows-*.jsonl or"
            " configmap://rows/*.jsonl; for https:// it is one file. Several files are read in the order of"
            " their names. Files compressed as .gz and .zst are unpacked."
        ),
    ]
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret with credentials for the source's server. Default: the role"
            " of the service account finetune-runner for object stores, or anonymous access."
        ),
    ] = None


class Columns(Model):
    """Names of the columns or JSON fields for each role, as in the files. Default: the usual names of the
    format."""

    prompt: Annotated[Column | None, Field(description="Column of the prompt. Default: prompt.")] = None
    completion: Annotated[
        Column | None, Field(description="Column of the completion. Default: completion.")
    ] = None
    messages: Annotated[
        Column | None, Field(description="Column of the chat messages. Default: messages.")
    ] = None
    chosen: Annotated[
        Column | None, Field(description="Column of the chosen answer, the better of two. Default: chosen.")
    ] = None
    rejected: Annotated[
        Column | None,
        Field(description="Column of the rejected answer, the worse of two. Default: rejected."),
    ] = None
    label: Annotated[
        Column | None,
        Field(description="Column of the label that marks an answer as good or bad. Default: label."),
    ] = None


class Cleaning(Model):
    """Cleaning of rows after they are split. Exact duplicates, and training rows that repeat a held-out
    row, are always removed. Default: the defaults of its fields."""

    normalize_whitespace: Annotated[
        bool,
        Field(
            description="Collapse runs of spaces and tabs to one space and runs of blank lines to one, and"
            " trim the ends of lines and texts."
        ),
    ] = False
    normalize_unicode: Annotated[bool, Field(description="Normalize texts to Unicode NFC.")] = False
    near_duplicates: Annotated[
        NearDuplicates,
        Field(
            description="Treatment of near duplicates. Off: no search. Keep: count and report them, and"
            " remove training rows that nearly repeat a held-out row and have its answer. Remove: as Keep,"
            " and also remove all but the first row of each group of near duplicates. With more rows than fit"
            " into memory, only a part of them is compared, and a warning gives its size."
        ),
    ] = "Keep"


class Checks(Model):
    """Search for secrets and personal data in texts. Off: no search. Warn: report findings. Redact:
    replace findings with a placeholder such as `[EMAIL]`. Fail: treat the row as invalid. Default: the
    defaults of its fields."""

    secrets: Annotated[
        Finding, Field(description="Action for passwords, tokens and private keys, found by detect-secrets.")
    ] = "Warn"
    email_addresses: Annotated[Finding, Field(description="Action for e-mail addresses.")] = "Off"
    payment_cards: Annotated[
        Finding, Field(description="Action for payment card numbers with a valid check digit.")
    ] = "Warn"
    ibans: Annotated[
        Finding, Field(description="Action for international bank account numbers with valid check digits.")
    ] = "Warn"
    phone_numbers: Annotated[Finding, Field(description="Action for valid phone numbers.")] = "Off"
    phone_region: Annotated[
        str | None,
        Field(
            pattern=COUNTRY,
            min_length=2,
            max_length=2,
            description="Country of phone numbers without a country code, such as DE. Default: only numbers"
            " that begin with + are found.",
            json_schema_extra=pattern_advice(
                COUNTRY, "write the two capital letters of a country, for example DE"
            ),
        ),
    ] = None


class Split(Model):
    """Split of the rows into train, validation and test. The split of a row depends only on its input, so
    a growing dataset moves no row."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.validation + self.test < 1.0",
            "split.validation + split.test must stay below 1, so that rows are left to train on: lower one",
        ),
        CELRule(
            "(has(self.column) ? 1 : 0) + (has(self.groupBy) ? 1 : 0) + (self.fromFiles ? 1 : 0) <= 1",
            "split.column, split.fromFiles and split.groupBy exclude each other: keep one. column and"
            " fromFiles take an existing split, groupBy keeps rows together in a new one",
        ),
    )

    validation: Annotated[float, Field(ge=0, lt=1, description="Fraction of rows for validation.")] = 0.1
    test: Annotated[float, Field(ge=0, lt=1, description="Fraction of rows held out for evaluation.")] = 0.1
    seed: Annotated[
        int,
        Field(
            ge=0, le=2147483647, description="Seed of the split. Another seed assigns rows to other splits."
        ),
    ] = 0
    group_by: Annotated[
        Column | None,
        Field(
            description="Column that keeps rows together: rows with equal values are in the same split."
            " Default: none."
        ),
    ] = None
    column: Annotated[
        Column | None,
        Field(
            description="Column that names the split of each row: train, validation or test. The fractions"
            " and the seed have no effect then. Default: none."
        ),
    ] = None
    from_files: Annotated[
        bool,
        Field(
            description="Take the split from the file names: train.jsonl, validation.jsonl, test.jsonl. The"
            " fractions and the seed have no effect then."
        ),
    ] = False


class RowSource(DataSource):
    """One source of rows, and how to read it."""

    format: Annotated[
        DataFormat | None,
        Field(description="Format of the source. Default: detected from the content."),
    ] = None
    columns: Columns | None = None
    splits: Annotated[
        SourceSplits,
        Field(
            description="Splits that rows of the source can be in. All: as spec.split says. TrainOnly: train"
            " only; rows that repeat a row of validation or test, or are in its group, are removed."
        ),
    ] = "All"


PREPARATION_RULES: Final = (
    CELRule(
        "!has(self.maxInvalidFraction) || self.onInvalidRows == 'Drop'",
        "maxInvalidFraction needs onInvalidRows: Drop; with Fail, one invalid row fails the preparation",
        "maxInvalidFraction",
    ),
)


class DataPreparation(Model):
    """How to prepare the rows of all sources."""

    rules: ClassVar[tuple[CELRule, ...]] = PREPARATION_RULES

    template: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=4096,
            description="Template that builds the prompt from several columns, with {COLUMN} for each, such"
            ' as "{subject}\\n{body}", for all sources. {{ and }} are literal braces. Default: none.',
        ),
    ] = None
    keep_columns: Annotated[
        tuple[Column, ...],
        Field(
            max_length=8,
            description="Columns or JSON fields to keep with each row as text, at most 256 characters of"
            " each value. Models never see them. evaluation.sliceBy of a run names one of them."
            " Default: none.",
        ),
    ] = ()
    cleaning: Cleaning | None = None
    checks: Checks | None = None
    split: Split = Split()
    on_invalid_rows: Annotated[
        Literal["Fail", "Drop"],
        Field(
            description="Treatment of invalid rows. Fail: an invalid row fails the preparation. Drop:"
            " invalid rows are left out and reported."
        ),
    ] = "Fail"
    max_invalid_fraction: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Max fraction of rows that onInvalidRows: Drop may leave out; more fail the"
            " preparation. Default: no limit.",
        ),
    ] = None


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

    phase: Phase = ""
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
    done_phase: ClassVar[str | None] = "Ready"
    stays_ready: ClassVar[bool] = True

    kind: str = "Dataset"
    spec: DatasetSpec
    status: DatasetStatus = DatasetStatus()
