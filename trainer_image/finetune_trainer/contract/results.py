"""What a stage found, decided, made or measured; written last."""

from contextlib import suppress
from typing import Annotated, Literal, Self, cast

from pydantic import Field

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract, Digest
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.lenient import lenient_validator
from finetune_trainer.contract.method import LoRA, Preference
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.vocabulary import CheckpointType, SplitName, Stage, Subject


class SplitRecord(Contract):
    """One split of a dataset; its digest is that of its file."""

    name: SplitName
    rows: int
    digest: Digest


class DataStatistics(Contract):
    """Facts about the rows, in rows and characters."""

    source_rows: int = 0
    invalid_rows: int = 0
    duplicate_rows: int = 0
    near_duplicate_rows: int = 0
    """Found; left out where cleaning says so."""
    leaked_rows: int = 0
    """Left out of training because a held-out row says the same, or nearly."""
    conflicting_rows: int = 0
    """Kept, with the input of another row and another answer."""
    prompt_characters_mean: float = 0
    prompt_characters_max: int = 0
    completion_characters_mean: float = 0
    completion_characters_max: int = 0
    distinct_completions: int = 0
    untested_answers: int = Field(default=0, json_schema_extra={"since": 2})
    """Of these, those with rows to train on and no row in the test split, where they are labels."""


class Difference(Contract):
    """A version beside the one before; a row is changed where its input stayed and its answer did not."""

    previous: Digest
    added: int
    removed: int
    changed: int


class PrepareResult(Contract):
    """What prepare found; `problems` and `warnings` are bounded, the report has more of them."""

    dataset: Digest | None = None
    source: Digest | None = None
    source_revision: str | None = None
    """Commit that a source at the hub was read at."""
    preparation: Digest | None = None
    format: str | None = None
    splits: tuple[SplitRecord, ...] = ()
    statistics: DataStatistics = DataStatistics()
    problem_count: int = 0
    """Of rows that cannot be used."""
    problems: tuple[str, ...] = ()
    warning_count: int = 0
    warnings: tuple[str, ...] = ()
    """Of rows that are used all the same, and of all rows together."""
    report_uri: str | None = None
    """The page in the store; beside it `report.json`, and `problems.jsonl` with every problem."""
    source_version: str | None = None
    """Tells this content of the source from another without reading it; None where its server cannot."""
    unchanged: bool = False
    """The source still has the version that the config names; nothing else of the result is set."""
    difference: Difference | None = None
    rule_version: int = Field(default=1, json_schema_extra={"since": 2})
    """Of the rules by which the rows were read and compared."""
    unread_labels: int = Field(default=0, json_schema_extra={"since": 2})
    """Rows with a label that may judge the answer, which a newer rule would not learn as they are."""


class PreflightResult(Contract):
    """What preflight decided."""

    base_model: Digest
    base_model_revision: str | None = None
    """Commit that a model at the hub was read at."""
    hyperparameters: Hyperparameters
    lora: LoRA | None = None
    """Settings of the adapter that is continued; None where none is."""
    preference: Preference | None = None
    """Settings of DPO, KTO or ORPO with what was left open; None for other methods."""
    chat_template: str
    """`model`, or the name of the template that the trainer supplied."""
    train_rows: int = 0
    train_tokens: int = 0
    longest_row_tokens: int = 0
    truncated_rows: int = 0
    report_uri: str | None = None
    """The page in the store with the rows' lengths in tokens."""


class CheckpointResult(Contract):
    """A published checkpoint; losses in nats a token, or a row where the method is DPO, KTO or ORPO.

    Rewards are those of the validation rows; of the last epoch's training rows where there are none.
    """

    digest: Digest
    type: CheckpointType
    step: int
    epoch: float
    train_loss: float | None = None
    validation_loss: float | None = None
    reward_accuracy: float | None = None
    """DPO, ORPO: share of the rows whose chosen answer has the higher reward."""
    reward_margin: float | None = None
    """DPO, KTO, ORPO: mean reward of good answers less that of bad ones."""
    best: bool = False
    final: bool = False


LossPoint = tuple[int, float, float | None]
"""A step, the mean training loss of the steps up to it from the point before, and a validation loss if one
was measured among these; in nats a token. A list on the wire: a curve must fit into a termination message."""


class TrainResult(Contract):
    """What training made."""

    steps: int
    train_loss: float | None = None
    """Token mean of the last complete epoch."""
    validation_loss: float | None = None
    """After the last complete epoch."""
    tokens: int = 0
    tokens_per_second: float | None = None
    """Mean of the whole run, validation and saving included, without what was lost."""
    device_memory_bytes: int | None = None
    """The most that the last pod had, as in `Progress`."""
    restarts: int = 0
    lost_device_seconds: float = 0
    """Training that pods had not saved when they ended, and that was repeated, times the run's processes."""
    loss_curve: tuple[LossPoint, ...] = ()
    """At most 32 points; a termination message may be without."""
    report_uri: str | None = None
    """The page in the store; beside it `report.json`."""
    stopped_early: bool = False
    """Before the last epoch, because the validation loss had not become lower for long enough."""
    overfit: bool = False
    """The validation loss rose after the best checkpoint while the training loss went on falling."""
    per_device_batch_size: int | None = None
    """What was used where the batches of the config did not fit into memory, as the next field is."""
    gradient_accumulation_steps: int | None = None
    checkpoints: tuple[CheckpointResult, ...]


class Score(Contract):
    """One metric of one subject."""

    metric: Metric
    subject: Subject
    value: float
    rows: int


class EvaluateResult(Contract):
    """What evaluation measured; gates are the operator's business."""

    checkpoint: Digest
    split: str
    scores: tuple[Score, ...]


class StageResult(Contract):
    """The one result of a stage: in the store, and as the pod's termination message."""

    contract: int = CONTRACT_VERSION
    stage: Stage
    run: str
    outcome: Literal["Succeeded", "Failed"]
    reason: str = ""
    message: str = ""
    prepare: PrepareResult | None = None
    preflight: PreflightResult | None = None
    train: TrainResult | None = None
    evaluate: EvaluateResult | None = None
    nonce: Annotated[str | None, Field(json_schema_extra={"since": 2})] = None
    """Of the config of the pod that leaves this message."""
    config_digest: Annotated[str | None, Field(json_schema_extra={"since": 2})] = None
    """`digest` of the config that the stage ran with."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The result in a termination message, or None where the text is something else.

        Fields of newer trainers are ignored; their enum values are data, whatever the types say.
        """
        with suppress(ValueError):
            return cls.model_validate_json(text, extra="ignore")
        with suppress(ValueError):
            return cast("Self", lenient_validator(cls).validate_json(text, extra="ignore"))
        return None
