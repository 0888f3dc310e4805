# SPDX-License-Identifier: Apache-2.0
"""What stages report: progress while they run, and one result when they end.

The chain completes without the reports of progress. A result includes the learning curve of a run: what
trainings on shares of its rows say about more rows.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Final, Literal, Self, cast

from pydantic import BaseModel, Field

from finetune_trainer.contract.analysis import AnalyzeResult
from finetune_trainer.contract.base import CONTRACT_VERSION, Contract, Digest, SharedPart, lenient_validator
from finetune_trainer.contract.evaluation import CheckFinding, EngineVersion, GateEvidence, UnmeasuredSubject
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import LoRA, Preference
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.own_metrics import CustomMetricSource, EvaluationTaskSource
from finetune_trainer.contract.prediction import Prediction
from finetune_trainer.contract.references import Owner
from finetune_trainer.contract.vocabulary import CheckpointType, ResultStage, SplitName, Stage, Subject


class Progress(Contract):
    """Progress of a stage. Losses: means of the last steps in nats per token; for DPO, KTO, ORPO per row."""

    step: int = 0
    total_steps: int = 0
    epoch: float | None = None
    loss: float | None = None
    reward_accuracy: float | None = None
    reward_margin: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    validation_loss: float | None = None
    """Validation loss after the last epoch."""
    validation_step: int | None = None
    """Optimizer step of `validation_loss`."""
    device_memory_bytes: int | None = None
    """Peak GPU memory of tensors; on a CPU, peak memory of the process."""


class Report(Contract):
    """One message to the report endpoint. The highest sequence number wins."""

    contract: int = CONTRACT_VERSION
    owner: Owner
    stage: Stage
    sequence: int
    progress: Progress

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Parse the body of a request, ignoring fields of newer trainers.

        Raises ValidationError.
        """
        return cls.model_validate_json(text, extra="ignore")


Outlook = Literal["LikelyToHelp", "NotLikelyToHelp", "Unknown"]

OUTLOOKS: Final[Mapping[Outlook, str]] = {
    "LikelyToHelp": "More rows of this kind are likely to help",
    "NotLikelyToHelp": "More rows of this kind are not likely to help",
    "Unknown": "The data does not show whether more rows would help",
}
"""What a learning curve says about more rows, as a sentence without its period."""


class LearningCurvePointFields(BaseModel):
    """A training on a share of the rows. Losses are in the trainer's unit, intervals two-sided at 95 %."""

    share: Annotated[float, Field(description="Share of the training rows; 1 for the run itself.")]
    rows: Annotated[int, Field(description="Number of training rows.")]
    loss: Annotated[
        float | None, Field(description="Lowest validation loss. Absent: the training failed.")
    ] = None
    loss_low: Annotated[
        float | None,
        Field(
            description="Lower bound of the 95 % interval of the loss. Absent: fewer than 20 validation rows."
        ),
    ] = None
    loss_high: Annotated[float | None, Field(description="Upper bound of the same interval.")] = None
    gain: Annotated[
        float | None,
        Field(
            description="Loss of the previous point minus that of this one, on the same rows; positive if the"
            " loss fell."
        ),
    ] = None
    gain_low: Annotated[
        float | None, Field(description="Lower bound of the 95 % interval of the gain, paired by row.")
    ] = None
    gain_high: Annotated[float | None, Field(description="Upper bound of the same interval.")] = None
    problem: Annotated[
        str | None, Field(max_length=512, description="Why the training failed or was left out.")
    ] = None


class LearningCurvePoint(LearningCurvePointFields, SharedPart):
    """A training on a share of the rows. `problem` is a sentence without its period."""


class LearningCurve(Contract):
    """The points by increasing share; the last one is the run itself."""

    points: tuple[LearningCurvePoint, ...] = ()
    outlook: Outlook = "Unknown"
    validation_rows: int = 0
    """Number of validation rows that each loss was measured on."""
    seconds: float = 0
    """Seconds of the trainings except the run itself, with repeated work."""


class SplitRecord(Contract):
    """One split of a dataset, with the digest of its file."""

    name: SplitName
    rows: int
    digest: Digest


class DataStatisticsFields(BaseModel):
    """Statistics of the rows, in rows and characters."""

    source_rows: Annotated[int, Field(ge=0, description="Number of rows in the sources.")] = 0
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
            description="Number of rows that were removed from training because a held-out row is the same,"
            " nearly the same, or in the same group.",
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


class DataStatistics(DataStatisticsFields, SharedPart):
    """Statistics that `prepare` reports."""

    untested_answers: int = 0
    """Distinct completions with training rows and without a test row, if the completions are labels."""


class SourceRows(Contract):
    """Rows of a version that came from one source.

    In each split they are together, after those of the sources before it.
    """

    uri: str
    train: int = 0
    validation: int = 0
    test: int = 0


class SourceResult(Contract):
    """What `prepare` found in one source. Short, because a termination message must hold all sources."""

    version: str | None = None
    """Identifies the content without reading it. None if the source's server does not support that."""
    revision: str | None = None
    """Commit of a source at the hub."""
    format: str | None = None
    train: int = 0
    """Rows of the version's train split that came from this source; likewise for the other splits."""
    validation: int = 0
    test: int = 0


class SourceDifference(Contract):
    """Part of a `Difference`: the rows of one source. A changed row counts for the source it now has."""

    uri: str
    added: int = 0
    removed: int = 0
    changed: int = 0


class Difference(Contract):
    """Difference to the previous version. A changed row has the same input and a different answer."""

    previous: Digest
    added: int
    removed: int
    changed: int
    sources: tuple[SourceDifference, ...] = ()
    """Per source with a difference, if one of the two versions has several sources. A termination message may
    omit them."""


class PrepareResult(Contract):
    """Result of `prepare`. `problems` and `warnings` are bounded; the report lists more."""

    dataset: Digest | None = None
    source: Digest | None = None
    """Digest of the bytes of all sources."""
    sources: tuple[SourceResult, ...] = ()
    """In the order of the config."""
    preparation: Digest | None = None
    format: str | None = None
    """Formats of the sources, such as `CSV`, or `CSV, Alpaca`."""
    splits: tuple[SplitRecord, ...] = ()
    statistics: DataStatistics = DataStatistics()
    problem_count: int = 0
    """Number of problems that make a row unusable."""
    problems: tuple[str, ...] = ()
    warning_count: int = 0
    warnings: tuple[str, ...] = ()
    """Problems of rows that are still used, and of all rows together."""
    report_uri: str | None = None
    """URI of the page in the store. Its folder has `report.json`, and `problems.jsonl` with every problem."""
    unchanged: bool = False
    """All sources still have the versions that the config names. The result has nothing else but these."""
    difference: Difference | None = None
    rule_version: int = 1
    """Version of the rules for reading and comparing rows."""
    unread_fields: tuple[str, ...] = ()
    """First fields of the rows that nothing reads and that have a meaning for training by their names."""
    group_by: str | None = None
    """Column of the source whose rows are kept together in one split; None if rows are independent."""


class PreflightResult(Contract):
    """Result of `preflight`."""

    base_model: Digest
    base_model_revision: str | None = None
    """Commit of a model at the hub."""
    hyperparameters: Hyperparameters
    lora: LoRA | None = None
    """Settings of the adapter; None for a method that trains all weights."""
    preference: Preference | None = None
    """Resolved settings of DPO, KTO or ORPO; None for other objectives."""
    chat_template: str
    """`model`, or the name of the trainer's own template."""
    reasoning_parser: str | None = None
    """Parser of the template's reasoning, named as in vLLM; None if the template has no reasoning."""
    train_rows: int = 0
    train_tokens: int = 0
    longest_row_tokens: int = 0
    truncated_rows: int = 0
    report_uri: str | None = None
    """URI of the page with the lengths of the rows in tokens."""
    warnings: tuple[str, ...] = ()
    """What the user should know of model and rows, although the run continues; one sentence each."""
    prediction: Prediction | None = None
    """What training will take; None if the method or the model cannot be predicted."""
    dropped_rows: int = 0
    """Rows of training and validation that are not used, because they are too long."""
    dropped_percent: float = 0
    """Their share of all rows of training and validation."""
    tokens: Digest | None = None
    """Digest of the encoded rows, derived from the dataset. Train reads it from this result in the store."""
    custom_metrics: tuple[CustomMetricSource, ...] = ()
    """Sources of the user's metrics."""
    tasks: tuple[EvaluationTaskSource, ...] = ()
    """Files of the tasks of the evaluation."""
    leaked_rows: int = 0
    """Rows of training and validation that are not used, because they repeat a row of `test_dataset`."""


class CheckpointResult(Contract):
    """A published checkpoint. Losses are in nats per token, or per row for DPO, KTO and ORPO.

    Rewards are measured on the validation rows, or on the last epoch's training rows if there are none.
    """

    digest: Digest
    type: CheckpointType
    step: int
    epoch: float
    train_loss: float | None = None
    validation_loss: float | None = None
    reward_accuracy: float | None = None
    """DPO, ORPO: share of rows whose chosen answer has the higher reward."""
    reward_margin: float | None = None
    """DPO, KTO, ORPO: mean reward of good answers minus mean reward of bad answers."""
    best: bool = False
    final: bool = False
    probe: Digest | None = None
    """Digest of the folder with the weights' probe, derived from the checkpoint; None if there is none."""


LossPoint = tuple[int, float, float | None]
"""Step, mean training loss since the previous point, and the validation loss if measured since then, in nats
per token. A list on the wire, because a curve must fit into a termination message."""


class RepeatedTraining(Contract):
    """Training that was repeated after one end of the run's pods."""

    after: float
    """Unix time of the last record of the lost training. The pods ended later."""
    before: float
    """Unix time at which the next pods resumed. The pods had ended."""
    device_seconds: float
    """Seconds of lost training, times the run's processes."""
    out_of_memory: bool = False
    """The next attempt needs less memory, because this one ran out of it."""


MAX_REPEATS: Final = 8


class TrainingLossFields(BaseModel):
    """Steps and losses of a training. Losses are in nats per token; DPO, KTO and ORPO: per row."""

    steps: Annotated[int, Field(description="Number of optimizer steps made.")]
    train_loss: Annotated[
        float | None, Field(description="Mean training loss of the last complete epoch.")
    ] = None
    validation_loss: Annotated[
        float | None, Field(description="Validation loss after the last complete epoch.")
    ] = None


class TrainingFigureFields(BaseModel):
    """What a training took, and where its report is."""

    tokens: Annotated[int, Field(description="Number of tokens read, without padding.")] = 0
    tokens_per_second: Annotated[
        float | None,
        Field(
            description="Mean tokens per second of the whole run, including validation and saving, without"
            " lost work."
        ),
    ] = None
    device_memory_bytes: Annotated[
        int | None, Field(description="Peak memory of the last pod, in bytes, measured as in progress.")
    ] = None
    restarts: Annotated[int, Field(description="Number of times that training restarted.")] = 0
    lost_device_seconds: Annotated[
        float,
        Field(
            description="Device seconds of training that ended pods had not saved and later pods repeated:"
            " the seconds, times the number of processes."
        ),
    ] = 0
    report_uri: Annotated[
        str | None,
        Field(
            description="URI of the HTML page with the loss curve, in the store. report.json is next to it."
        ),
    ] = None


class TrainResult(TrainingFigureFields, TrainingLossFields, Contract):
    """Result of `train`."""

    repeats: tuple[RepeatedTraining, ...] = ()
    """Parts of `lost_device_seconds`: the last `MAX_REPEATS`. A termination message may omit them."""
    loss_curve: tuple[LossPoint, ...] = ()
    """At most 32 points. A termination message may omit them."""
    stopped_early: bool = False
    """Whether training stopped before the last step, because the validation loss no longer fell."""
    overfit: bool = False
    """The validation loss rose after the best checkpoint while the training loss kept falling."""
    max_batch_rows: int | None = None
    """Value used instead of the config's if its batches did not fit into memory."""
    max_batch_tokens: int | None = None
    """Like `max_batch_rows`."""
    gradient_checkpointing: bool | None = None
    """True if it was turned on because a batch did not fit into memory; else None."""
    learning_curve: LearningCurve | None = None
    """None if the config does not request it. A termination message may omit it."""
    checkpoints: tuple[CheckpointResult, ...]


class Score(Contract):
    """One metric of one subject, with its two-sided 95 % interval if it has one."""

    metric: Metric
    subject: Subject
    value: float
    rows: int
    low: float | None = None
    high: float | None = None


class EvaluateResult(Contract):
    """Result of `evaluate`. The operator decides the gates."""

    checkpoint: Digest
    split: str
    scores: tuple[Score, ...]
    evidence: tuple[GateEvidence, ...] = ()
    """One entry for each of the config's gates."""
    findings: tuple[CheckFinding, ...] = ()
    unmeasured: tuple[UnmeasuredSubject, ...] = ()
    live: Digest | None = None
    """Digest of the weights that the subject Live measured; None if the config has no such model."""
    prompt: Digest | None = None
    """Digest of `prompt.json` next to the page, the prompt of the subject Prompted; None without it."""
    report_uri: str | None = None
    """URI of the page in the store. Its folder has the predictions."""
    engine: EngineVersion | None = None
    """Engine that generated the answers; None for that of the trainer, which computes all other values."""
    custom_metrics: tuple[CustomMetricSource, ...] = ()
    """Sources of the user's metrics, whose values score computes."""
    tasks: tuple[EvaluationTaskSource, ...] = ()
    """Files of the tasks."""


class ScoreResult(Contract):
    """Result of `score`: the custom metrics, in the same form as in the result of `evaluate`."""

    scores: tuple[Score, ...]
    evidence: tuple[GateEvidence, ...] = ()
    """One per gate on a metric of the user."""
    sources: tuple[CustomMetricSource, ...] = ()


class StageResult(Contract):
    """The single result of a stage, in the store and in the pod's termination message."""

    contract: int = CONTRACT_VERSION
    stage: ResultStage
    run: str
    outcome: Literal["Succeeded", "Failed"]
    reason: str = ""
    message: str = ""
    prepare: PrepareResult | None = None
    preflight: PreflightResult | None = None
    train: TrainResult | None = None
    evaluate: EvaluateResult | None = None
    score: ScoreResult | None = None
    analyze: AnalyzeResult | None = None
    nonce: str | None = None
    """Nonce from the config of the pod that writes this message."""
    config_digest: str | None = None
    """`digest` of the stage's config."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse a termination message. Return None if the text is not a result.

        Ignores fields of newer trainers and accepts their enum values.
        """
        with suppress(ValueError):
            return cls.model_validate_json(text, extra="ignore")
        with suppress(ValueError):
            return cast("Self", lenient_validator(cls).validate_json(text, extra="ignore"))
        return None
