# SPDX-License-Identifier: Apache-2.0
"""Status of a FineTuneJob: progress, prediction, results, text for kubectl, advice for later runs."""

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.evaluation import EvaluationStatus, LiveComparison
from finetune_operator.api.evaluation_metrics import CustomMetricSources, EvaluationTaskSources
from finetune_operator.api.meta import MAX_PROBLEMS, Conditions, Digest, Message, Model, Name, Phase, Status
from finetune_operator.api.stage_status import Cost, RetryStatus, StageStatus, StageUsage
from finetune_operator.api.training import (
    ChatTemplateKwargs,
    LearningCurve,
    Preference,
    ResolvedHyperparameters,
    ResolvedLoRA,
)
from finetune_trainer.contract.prediction import MAX_CHOSEN, PredictionFields
from finetune_trainer.contract.results import TrainingFigureFields, TrainingLossFields
from finetune_trainer.contract.vocabulary import Stage

MAX_ADVICE: Final = 4


class Advice(Model):
    """One thing that a later run can do better."""

    reason: Annotated[
        str,
        Field(
            max_length=64,
            description="Kind of the advice. SmallerProfile: a ComputeProfile with less device memory is"
            " large enough for this model line.",
        ),
    ]
    profile: Annotated[Name | None, Field(description="ComputeProfile that the advice names.")] = None
    message: Annotated[Message, Field(description="The advice, with the figures that it follows from.")]


AdviceList = Annotated[
    tuple[Advice, ...],
    Field(
        max_length=MAX_ADVICE,
        description="Advice for later runs, from what this run and earlier ones measured.",
    ),
]


class DroppedRows(Model):
    """Rows of training and validation that the run does not use, because they are too long."""

    rows: Annotated[int, Field(description="Number of rows.")]
    percent: Annotated[float, Field(description="Percent of the rows of training and validation.")]


class JobDisplay(Model):
    """Text for kubectl get and kubectl describe. Programs must not read it."""

    progress: Annotated[str | None, Field(description="Current stage, percent and steps.")] = None
    loss: Annotated[str | None, Field(description="Training loss.")] = None
    score: Annotated[
        str | None, Field(description="First score of the tuned model, and that of the base model.")
    ] = None
    evaluation: Annotated[
        tuple[Annotated[str, Field(max_length=160)], ...] | None,
        Field(max_length=21, description="Table of the scores, with 95 % intervals, for kubectl describe."),
    ] = None
    eta: Annotated[str | None, Field(description="Estimated time until the current stage ends.")] = None
    predicted: Annotated[
        str | None, Field(description="Predicted duration, device memory and cost of training.")
    ] = None
    took: Annotated[str | None, Field(description="The same three figures as measured.")] = None


class MeasuredTraining(Model):
    """What training took, to compare with the prediction."""

    device_memory_bytes: Annotated[
        int | None, Field(description="Peak memory of one device, in bytes, as in status.training.")
    ] = None
    seconds: Annotated[
        float | None,
        Field(
            description="Seconds of training, with validation and saving, without start and repeated work:"
            " tokens divided by tokens per second. Includes the trainings of a learning curve."
        ),
    ] = None
    cost: Annotated[
        float | None,
        Field(
            description="Price of the device time of the train stage, with start and repeated work, by"
            " cost.pricePerDeviceHour of the ComputeProfile."
        ),
    ] = None
    mfu: Annotated[
        float | None,
        Field(
            description="Model FLOPs utilization: the predicted floating-point operations of the steps made,"
            " divided by what the devices could compute in `seconds`. Absent: the peak of the device is"
            " unknown. The median of the last 20 runs of a ComputeProfile predicts the next one."
        ),
    ] = None


class Prediction(PredictionFields, Model):
    """What training will take, as preflight predicts it from one fake step."""

    device: Annotated[
        str | None, Field(max_length=63, description="Product name of the devices. Absent: unknown.")
    ] = None
    peak_teraflops: Annotated[
        float | None,
        Field(
            description="Peak of one device in 10^12 floating-point operations per second. Absent: unknown."
        ),
    ] = None
    seconds_low: Annotated[
        int | None,
        Field(
            description="Lower bound of the seconds of training, without start, with those of a learning"
            " curve. Absent: the peak of the devices is unknown."
        ),
    ] = None
    seconds_high: Annotated[
        int | None, Field(description="Upper bound of the seconds of training, without start.")
    ] = None
    cost_low: Annotated[
        float | None,
        Field(
            description="Price of `secondsLow` on all devices, by cost.pricePerDeviceHour. Absent: no price."
        ),
    ] = None
    cost_high: Annotated[float | None, Field(description="Price of `secondsHigh` on all devices.")] = None
    currency: Annotated[str | None, Field(description="Currency of the costs.")] = None
    mfu: Annotated[
        float | None,
        Field(description="Model FLOPs utilization that the seconds assume, as a share of the peak."),
    ] = None
    mfu_assumed: Annotated[
        bool,
        Field(
            description="Whether mfu is an assumption. Otherwise it is the median of the last 20 runs of the"
            " ComputeProfile."
        ),
    ] = False
    chosen: Annotated[
        tuple[Annotated[str, Field(max_length=256)], ...],
        Field(max_length=MAX_CHOSEN, description="Settings that preflight chose to fit the device, and why."),
    ] = ()
    measured: Annotated[
        MeasuredTraining | None, Field(description="What training took. Absent until it has ended.")
    ] = None


MAX_CHECKPOINTS: Final = 10
TrainerContract = Annotated[
    int | None,
    Field(
        ge=1,
        le=1000,
        description="Version of the contract between operator and trainer that trainerImage reads.",
    ),
]


class Resolved(Model):
    """Values that the spec left open, chosen once and never changed."""

    parent_checkpoint: Annotated[
        Name | None, Field(description="Checkpoint that the run continues from.")
    ] = None
    parent_digest: Annotated[str | None, Field(description="Digest of the weights of that Checkpoint.")] = (
        None
    )
    base_model_uri: Annotated[
        str | None,
        Field(
            description="Source of the base model of that Checkpoint. If baseModel.champion found no"
            " champion: baseModel.uri."
        ),
    ] = None
    base_model_digest: Annotated[str | None, Field(description="Digest of the base model's files.")] = None
    base_model_revision: Annotated[str | None, Field(description="Commit of the base model at the hub.")] = (
        None
    )
    dataset_version: Annotated[str | None, Field(description="DatasetVersion that the run trains on.")] = None
    dataset_digest: Annotated[str | None, Field(description="Digest of that DatasetVersion.")] = None
    hyperparameters: ResolvedHyperparameters | None = None
    lora: Annotated[
        ResolvedLoRA | None,
        Field(description="Settings of the adapter. Absent: the run trains all weights of the model."),
    ] = None
    preference: Annotated[
        Preference | None, Field(description="Settings of DPO, KTO or ORPO, including the chosen values.")
    ] = None
    chat_template_kwargs: Annotated[
        ChatTemplateKwargs | None, Field(description="Arguments for the chat template of the base model.")
    ] = None
    reasoning_parser: Annotated[
        str | None,
        Field(
            max_length=64,
            description="Parser that separates the reasoning of an answer from its content, named as in"
            " vLLM.",
        ),
    ] = None
    evaluation_dataset_version: Annotated[
        str | None, Field(description="DatasetVersion of evaluation.dataset.")
    ] = None
    evaluation_dataset_digest: Annotated[str | None, Field(description="Digest of that DatasetVersion.")] = (
        None
    )
    custom_metrics: CustomMetricSources = None
    tasks: EvaluationTaskSources = None
    profile: Annotated[str | None, Field(description="ComputeProfile of the run.")] = None
    profile_generation: Annotated[
        int | None, Field(description="Generation of the ComputeProfile that the run started with.")
    ] = None
    store: Annotated[str | None, Field(description="URI of the run's store.")] = None
    store_credentials: Annotated[
        str | None, Field(description="Secret with the credentials of the store.")
    ] = None
    trainer_image: Annotated[str | None, Field(description="Image of the run's pods.")] = None
    trainer_contract: TrainerContract = None


class ProgressStatus(Model):
    """Progress of the current stage."""

    stage: Annotated[
        Stage, Field(description="Current stage: prepare the rows, preflight checks, train or evaluate.")
    ]
    step: Annotated[
        int, Field(description="Number of finished steps of the stage; optimizer steps in train.")
    ] = 0
    total_steps: Annotated[int, Field(description="Total number of steps of the stage.")] = 0
    percent: Annotated[int, Field(description="Percent of finished steps.")] = 0
    loss: Annotated[
        float | None,
        Field(
            description="Mean training loss of the last 20 steps, in nats per token; DPO, KTO and ORPO: per"
            " row. Stages after train keep the last value."
        ),
    ] = None
    reward_accuracy: Annotated[
        float | None,
        Field(
            description="DPO, ORPO: share of pairs whose chosen answer has the higher reward, over the last"
            " 20 steps."
        ),
    ] = None
    reward_margin: Annotated[
        float | None,
        Field(
            description="DPO, KTO, ORPO: mean reward of good answers minus that of bad answers, over the"
            " last 20 steps."
        ),
    ] = None
    learning_rate: Annotated[float | None, Field(description="Learning rate of the last step.")] = None
    tokens_per_second: Annotated[
        float | None, Field(description="Tokens per second over the last 20 steps.")
    ] = None
    eta_seconds: Annotated[int | None, Field(description="Estimated seconds until the stage ends.")] = None
    validation_loss: Annotated[
        float | None, Field(description="Validation loss after the last finished epoch.")
    ] = None
    validation_step: Annotated[int | None, Field(description="Optimizer step of validationLoss.")] = None
    device_memory_bytes: Annotated[
        int | None,
        Field(description="Peak memory of tensors on a GPU, in bytes; on a CPU, peak memory of the process."),
    ] = None


class _TrainingRewards(TrainingLossFields):
    """Rewards of the best Checkpoint. In a CRD, fields of a base come before those of a class."""

    reward_accuracy: Annotated[
        float | None,
        Field(
            description="DPO, ORPO: share of pairs whose chosen answer has the higher reward, for the best"
            " Checkpoint."
        ),
    ] = None
    reward_margin: Annotated[
        float | None,
        Field(
            description="DPO, KTO, ORPO: mean reward of good answers minus that of bad answers, for the best"
            " Checkpoint."
        ),
    ] = None


class TrainingStatus(TrainingFigureFields, _TrainingRewards, Model):
    """Results of the finished train stage. Losses are in nats per token; DPO, KTO and ORPO: per row."""

    learning_curve: Annotated[
        LearningCurve | None,
        Field(description="Learning curve of the run, if spec.learningCurve requests it."),
    ] = None
    image: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Trainer image of the train pods, by digest. Absent: no node reported the digest.",
        ),
    ] = None


class LossPoint(Model):
    """Point of a loss curve, in nats per token; DPO, KTO and ORPO: per row."""

    step: Annotated[int, Field(ge=0, description="Optimizer step of the point.")]
    train: Annotated[
        float, Field(description="Mean training loss of the steps after the previous point, up to this one.")
    ]
    validation: Annotated[
        float | None,
        Field(
            description="Validation loss at the last epoch end among these steps. Absent: none of them ended"
            " an epoch."
        ),
    ] = None


class CheckpointSummary(Model):
    """Checkpoint of the run."""

    name: Annotated[Name, Field(description="Name of the Checkpoint.")]
    step: Annotated[int, Field(description="Optimizer step of the weights.")]
    digest: Annotated[Digest, Field(description="Digest of the weights.")]
    best: Annotated[
        bool,
        Field(
            description="Whether these are the weights with the lowest validation loss; without validation"
            " rows, the final weights."
        ),
    ] = False
    final: Annotated[bool, Field(description="Whether these are the last weights of the run.")] = False
    probe: Annotated[Digest | None, Field(description="Probe of the weights, as in the Checkpoint.")] = None


class FineTuneJobStatus(Status):
    """Observed state of a run."""

    phase: Phase = ""
    resolved: Resolved = Resolved()
    dropped_rows: DroppedRows | None = None
    leaked_rows: Annotated[
        int | None,
        Field(
            description="Rows of training and validation that are left out, because a row of"
            " evaluation.dataset is the same or nearly the same. Absent: none."
        ),
    ] = None
    prediction: Prediction | None = None
    progress: ProgressStatus | None = None
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=8, description="Finished stages.")] = ()
    usage: StageUsage | None = None
    retry: RetryStatus | None = None
    training: TrainingStatus | None = None
    checkpoints: Annotated[
        tuple[CheckpointSummary, ...],
        Field(max_length=MAX_CHECKPOINTS, description="Checkpoints of the run."),
    ] = ()
    problems: Annotated[
        tuple[Message, ...],
        Field(max_length=MAX_PROBLEMS, description="First problems in the rows of spec.dataset.source."),
    ] = ()
    live: LiveComparison | None = None
    evaluation: EvaluationStatus | None = None
    cost: Cost | None = None
    advice: AdviceList = ()
    display: JobDisplay | None = None
    conditions: Conditions = ()
