"""How rows are read, divided, cleaned and checked."""

from pydantic import Field

from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.vocabulary import Finding, NearDuplicates


class Columns(Contract):
    """Which column or JSON field holds what."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None


class Split(Contract):
    """Fractions of rows, and what the division hangs on; or where the rows say their split themselves."""

    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_by: str | None = None
    column: str | None = None
    from_files: bool = False
    rule_version: int = Field(default=1, json_schema_extra={"since": 2})
    """Of the rules by which rows are read and compared, up to `RULE_VERSION`."""


class Cleaning(Contract):
    """Changes made to rows after they were divided."""

    normalize_whitespace: bool = False
    normalize_unicode: bool = False
    near_duplicates: NearDuplicates = "Keep"
    max_rows_for_near_duplicates: int = 200_000


class Checks(Contract):
    """What is looked for in texts, and what becomes of a row that has it."""

    secrets: Finding = "Warn"
    email_addresses: Finding = "Off"
    payment_cards: Finding = "Warn"
    ibans: Finding = "Warn"
    phone_numbers: Finding = "Off"
    phone_region: str | None = None
