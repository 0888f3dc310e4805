# SPDX-License-Identifier: Apache-2.0
"""Sources of rows, and how to prepare them."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import CELRule, Model, SecretReference, Uri, pattern_advice
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
