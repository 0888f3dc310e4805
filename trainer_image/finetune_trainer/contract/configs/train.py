# SPDX-License-Identifier: Apache-2.0
"""The config of the stage that trains."""

from typing import ClassVar, Literal

from pydantic import Field

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.stage import STEP_TIMEOUT_SECONDS, StageConfig
from finetune_trainer.contract.environment import METRICS_PORT
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.references import ParentCheckpoint
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, SplitName


class TrainConfig(StageConfig):
    """Train a model, save its state, and publish checkpoints."""

    not_work: ClassVar[frozenset[str]] = StageConfig.not_work | {"maxRunSeconds"}

    stage: Literal["train"] = "train"
    base_model: Digest
    parent: ParentCheckpoint | None = None
    """Checkpoint that training starts from. It was trained from the same base model."""
    dataset: Digest
    test_dataset: Digest | None = None
    """Dataset of the rows to evaluate on, which training must not see; None for the test split of
    `dataset`."""
    test_split: SplitName = "test"
    """Split of `test_dataset`."""
    method: Method = Method()
    chat_template_kwargs: ChatTemplateKwargs = Field(default={})
    hyperparameters: Hyperparameters
    keep: int = 0
    """Number of most recent periodic saves to publish as Checkpoints, in addition to best and final."""
    keep_steps: tuple[int, ...] = ()
    """Steps to publish as Checkpoints in any case."""
    step_timeout_seconds: int = STEP_TIMEOUT_SECONDS
    """Seconds without a finished batch, validation batch or save after which the process ends."""
    metrics_port: int = METRICS_PORT
    nodes: int = 1
    """Number of pods that train together. Each has its index in the environment variable `NODE_RANK_ENV`."""
    devices: int = 1
    """Processes per pod, one per accelerator; one in a pod without accelerators."""
    coordinator: str | None = None
    """Host name of the pod with index 0; None if the run has one pod."""
    peer_key_path: str | None = None
    """Key file by which the pods of the run authenticate to each other; None if the run has one pod."""
    learning_curve: tuple[float, ...] = ()
    """Shares of the training rows, above 0 and below 1, to train on after the run itself, in this order."""
    group_by: str | None = None
    """Column of the source whose rows are together in one split, and count as one in the intervals of the
    learning curve; None: independent rows, or no curve."""
    max_run_seconds: int | None = None
    """Seconds that the stage may run. A training of the learning curve that would exceed them is left out."""
