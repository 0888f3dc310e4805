"""The config of the stage that evaluates."""

from typing import Literal

from pydantic import Field

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.metrics import DEFAULT_METRICS, Metric
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, CheckpointType, Subject


class EvaluateConfig(StageConfig):
    """Evaluate one checkpoint and its base model on one split."""

    stage: Literal["evaluate"] = "evaluate"
    base_model: Digest
    dataset: Digest
    checkpoint: Digest
    checkpoint_type: CheckpointType = "Adapter"
    split: Literal["test"] = "test"
    metrics: tuple[Metric, ...] = DEFAULT_METRICS
    subjects: tuple[Subject, ...] = ("Tuned", "Base")
    chat_template_kwargs: ChatTemplateKwargs = Field(
        default={}, json_schema_extra={"since": 2, "essential": True}
    )
    max_sequence_length: int = 2048
    max_new_tokens: int = 256
    batch_size: int = 8
    seed: int = 0
