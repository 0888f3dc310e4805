"""What is seen of a run: the status of a FineTuneJob."""

from datetime import datetime
from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.evaluationstatus import EvaluationStatus
from finetune_operator.api.hyperparameters import ResolvedHyperparameters
from finetune_operator.api.meta import MAX_PROBLEMS, Conditions, Digest, Message, Model, Name, Status
from finetune_operator.api.method import LoRA, Preference
from finetune_operator.api.retrystatus import RetryStatus
from finetune_trainer.contract.vocabulary import Stage

MAX_CHECKPOINTS: Final = 10


class Resolved(Model):
    """What open choices became; chosen once, never again."""

    parent_checkpoint: Annotated[
        Name | None, Field(description="The Checkpoint that the run continues from.")
    ] = None
    parent_digest: Annotated[str | None, Field(description="Digest of that Checkpoint's weights.")] = None
    base_model_uri: Annotated[
        str | None, Field(description="Where the base model of that Checkpoint came from.")
    ] = None
    base_model_digest: str | None = None
    base_model_revision: Annotated[
        str | None, Field(description="Commit at the hub that the base model was read at.")
    ] = None
    dataset_version: str | None = None
    dataset_digest: str | None = None
    hyperparameters: ResolvedHyperparameters | None = None
    lora: Annotated[LoRA | None, Field(description="Settings of the adapter that is continued.")] = None
    preference: Annotated[
        Preference | None, Field(description="Settings of DPO, KTO or ORPO, with what was chosen.")
    ] = None
    profile: str | None = None
    profile_generation: int | None = None
    store: str | None = None
    store_credentials: Annotated[str | None, Field(description="Secret that the store is opened with.")] = (
        None
    )
    trainer_image: str | None = None
    trainer_contract: Annotated[
        int | None, Field(ge=1, le=1000, description="Version of the contract that trainerImage reads.")
    ] = None


class ProgressStatus(Model):
    """How far the running stage is."""

    stage: Stage
    step: int = 0
    total_steps: int = 0
    percent: int = 0
    loss: float | None = None
    reward_accuracy: Annotated[
        float | None,
        Field(description="DPO, ORPO: share of the last pairs whose chosen answer has the higher reward."),
    ] = None
    reward_margin: Annotated[
        float | None,
        Field(description="DPO, KTO, ORPO: mean reward of good answers less that of bad ones."),
    ] = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    validation_loss: Annotated[float | None, Field(description="After the last epoch.")] = None
    device_memory_bytes: Annotated[
        int | None,
        Field(description="The most that tensors took of a GPU; on a CPU, the most memory of the process."),
    ] = None


class TrainingStatus(Model):
    """What the finished train stage came to; losses in nats a token."""

    steps: int
    train_loss: Annotated[float | None, Field(description="Of the last complete epoch.")] = None
    validation_loss: Annotated[float | None, Field(description="After the last complete epoch.")] = None
    reward_accuracy: Annotated[
        float | None,
        Field(
            description="DPO, ORPO: share of pairs whose chosen answer has the higher reward, of the best"
            " Checkpoint."
        ),
    ] = None
    reward_margin: Annotated[
        float | None,
        Field(
            description="DPO, KTO, ORPO: mean reward of good answers less that of bad ones, of the best"
            " Checkpoint."
        ),
    ] = None
    tokens: Annotated[int, Field(description="Tokens read, padding not counted.")] = 0
    tokens_per_second: Annotated[
        float | None, Field(description="Mean of the whole run, validation and saving included.")
    ] = None
    device_memory_bytes: Annotated[
        int | None, Field(description="The most that the last pod took, as in progress.")
    ] = None
    restarts: int = 0
    lost_device_seconds: Annotated[
        float,
        Field(
            description="Training that pods had not saved when they ended, and that was repeated, times the"
            " processes that train together."
        ),
    ] = 0
    report_uri: Annotated[
        str | None, Field(description="Page with the loss curve, in the store; beside it report.json.")
    ] = None
    image: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Trainer image that the train pods ran, by digest; absent where no node says.",
        ),
    ] = None


class StageStatus(Model):
    """Times of one finished stage."""

    name: Stage
    profile: Annotated[Name | None, Field(description="ComputeProfile that it ran on.")] = None
    queued_seconds: float = 0
    seconds: float = 0
    device_seconds: float = 0


class StageUsage(Model):
    """Time used by a stage that has not finished, over all its pods, also those of before a suspension."""

    name: Stage
    profile: Annotated[Name | None, Field(description="ComputeProfile that it runs on.")] = None
    queued_seconds: float = 0
    seconds: float = 0
    device_seconds: float = 0
    until: Annotated[datetime, Field(description="What came after this moment is not counted yet.")]


class LossPoint(Model):
    """A point of a loss curve, in nats a token."""

    step: Annotated[int, Field(ge=0)]
    train: Annotated[float, Field(description="Mean of the steps up to this one from the point before.")]
    validation: Annotated[
        float | None, Field(description="Where one of these steps ended an epoch; the last of them.")
    ] = None


class CheckpointSummary(Model):
    """A checkpoint of this run."""

    name: Name
    step: int
    digest: Digest
    best: bool = False
    final: bool = False


class Cost(Model):
    """What the run has used."""

    device_seconds: float = 0
    amount: float | None = None
    currency: str | None = None


class JobDisplay(Model):
    """Text for `kubectl get`; for eyes only, no code reads it."""

    progress: str | None = None
    loss: str | None = None
    score: str | None = None
    eta: str | None = None


class FineTuneJobStatus(Status):
    """Observed state of a run."""

    phase: Annotated[str, Field(max_length=32, description="For eyes only.")] = ""
    resolved: Resolved = Resolved()
    progress: ProgressStatus | None = None
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=8)] = ()
    usage: StageUsage | None = None
    retry: Annotated[
        RetryStatus | None, Field(description="A stage that is tried again; absent: none is.")
    ] = None
    training: TrainingStatus | None = None
    checkpoints: Annotated[tuple[CheckpointSummary, ...], Field(max_length=MAX_CHECKPOINTS)] = ()
    problems: Annotated[
        tuple[Message, ...], Field(max_length=MAX_PROBLEMS, description="Rows that inline data failed on.")
    ] = ()
    evaluation: EvaluationStatus | None = None
    cost: Cost | None = None
    display: JobDisplay | None = None
    conditions: Conditions = ()
