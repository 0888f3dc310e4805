"""A source of rows, and how they are prepared."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import Model, Rule, SecretReference, Uri, pattern_advice
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
