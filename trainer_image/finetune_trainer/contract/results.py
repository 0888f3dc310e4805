# SPDX-License-Identifier: Apache-2.0
"""What stages report: progress while they run, and results.

Progress is reported while a stage runs. The chain completes without these reports.

The learning curve of a run: what trainings on shares of its rows say about more rows.

Results of the stages, written when the stage ends.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Literal, Self, cast

from finetune_trainer.contract.analysis import AnalyzeResult
from finetune_trainer.contract.base import CONTRACT_VERSION, Contract, Digest, lenient_validator
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


class LearningCurvePoint(Contract):
    """A training on a share of the rows. Losses are in the trainer's unit, intervals two-sided at 95 %."""

    share: float
    """Share of the training rows; 1 for the run itself."""
    rows: int
    """Number of training rows."""
    loss: float | None = None
    """Lowest validation loss; None if the training failed."""
    loss_low: float | None = None
    loss_high: float | None = None
    gain: float | None = None
    """Loss of the previous point minus that of this one, on the same rows; positive if the loss fell."""
    gain_low: float | None = None
    gain_high: float | None = None
    problem: str | None = None
    """Why the training failed, as a sentence without its period."""


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


class DataStatistics(Contract):
    """Statistics of the rows, in rows and characters."""

    source_rows: int = 0
    invalid_rows: int = 0
    duplicate_rows: int = 0
    near_duplicate_rows: int = 0
    """Near duplicates found. Whether they are removed depends on `cleaning`."""
    leaked_rows: int = 0
    """Rows removed from training because a held-out row is the same or nearly the same."""
    conflicting_rows: int = 0
    """Kept rows with the input of another row and a different answer."""
    prompt_characters_mean: float = 0
    prompt_characters_max: int = 0
    completion_characters_mean: float = 0
    completion_characters_max: int = 0
    distinct_completions: int = 0
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


class TrainResult(Contract):
    """Result of `train`."""

    steps: int
    train_loss: float | None = None
    """Mean per token of the last complete epoch."""
    validation_loss: float | None = None
    """Validation loss after the last complete epoch."""
    tokens: int = 0
    tokens_per_second: float | None = None
    """Mean of the whole run, including validation and saving, excluding lost work."""
    device_memory_bytes: int | None = None
    """Peak of the last pod, as in `Progress`."""
    restarts: int = 0
    lost_device_seconds: float = 0
    """Seconds of training repeated because pods ended before they saved it, times the run's processes."""
    repeats: tuple[RepeatedTraining, ...] = ()
    """Parts of `lost_device_seconds`: the last `MAX_REPEATS`. A termination message may omit them."""
    loss_curve: tuple[LossPoint, ...] = ()
    """At most 32 points. A termination message may omit them."""
    report_uri: str | None = None
    """URI of the page in the store. Its folder has `report.json`."""
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
