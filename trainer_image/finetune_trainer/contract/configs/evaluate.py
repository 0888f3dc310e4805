# SPDX-License-Identifier: Apache-2.0
"""The config of the stage that evaluates."""

from typing import Literal

from pydantic import Field

from finetune_trainer.contract.answerengine import AnswerEngine
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.stage import STEP_TIMEOUT_SECONDS, StageConfig
from finetune_trainer.contract.custommetric import CustomMetric
from finetune_trainer.contract.evaluation import (
    EvaluationChecks,
    GateBound,
    GenerationSettings,
    LiveModel,
    MetricOptions,
    PromptedModel,
)
from finetune_trainer.contract.evaluationtask import EvaluationTask
from finetune_trainer.contract.judge import Judge
from finetune_trainer.contract.metrics import DEFAULT_METRICS, Metric
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, CheckpointType, SplitName, Subject


class EvaluateConfig(StageConfig):
    """Evaluate one checkpoint and its base model on one split."""

    stage: Literal["evaluate"] = "evaluate"
    base_model: Digest
    dataset: Digest
    """Dataset of the evaluated rows."""
    training_dataset: Digest | None = None
    """Dataset whose training rows the weights have seen; None if it is not recorded any more."""
    shown_dataset: Digest | None = None
    """Dataset whose training rows the subject Prompted shows; None for `dataset`."""
    checkpoint: Digest
    checkpoint_type: CheckpointType = "Adapter"
    probe: Digest | None = None
    """Digest of the checkpoint's probe, with which its predictions are compared; None if it has none."""
    quantized_base: bool = False
    """Whether the adapter was trained on a base model in 4 bits. All subjects are then measured on it."""
    split: SplitName = "test"
    metrics: tuple[Metric, ...] = DEFAULT_METRICS
    subjects: tuple[Subject, ...] = ("Tuned", "Base")
    chat_template_kwargs: ChatTemplateKwargs = Field(default={})
    max_sequence_length: int = 2048
    max_new_tokens: int = 256
    batch_size: int = 32
    """Max rows of a batch; long rows have smaller batches."""
    seed: int = 0
    step_timeout_seconds: int = STEP_TIMEOUT_SECONDS
    """Seconds without a finished batch or generated token after which the process ends."""
    generation: GenerationSettings = GenerationSettings()
    options: MetricOptions = MetricOptions()
    prompted: PromptedModel = PromptedModel()
    live: LiveModel | None = None
    """The model of the subject Live; None if the model line has no champion."""
    gates: tuple[GateBound, ...] = ()
    """Bounds for which the result has evidence."""
    slice_by: str | None = None
    """Kept column of the rows by which the page shows the scores in parts."""
    group_by: str | None = None
    """Column of the source whose rows are together in one split, and count as one; None: independent rows."""
    judges: tuple[Judge, ...] = ()
    """Models that compare the answers of two subjects when all subjects are measured."""
    checks: EvaluationChecks | None = None
    """Checks of the weights; None: no checks."""
    tasks: tuple[EvaluationTask, ...] = ()
    """Tasks of general ability, which all subjects but Prompted do."""
    custom_metrics: tuple[CustomMetric, ...] = ()
    """Metrics of the user, which score computes. Their sources are checked before anything is measured."""
    answer_engine: AnswerEngine | None = None
    """Set if the ComputeProfile has another engine than that of the trainer."""
