# SPDX-License-Identifier: Apache-2.0
"""The config of the stage that checks the base model against the data."""

from typing import ClassVar, Literal

from pydantic import Field

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.custommetric import CustomMetric
from finetune_trainer.contract.evaluation import MetricOptions
from finetune_trainer.contract.evaluationtask import EvaluationTask
from finetune_trainer.contract.hyperparameters import RequestedHyperparameters
from finetune_trainer.contract.judge import Judge
from finetune_trainer.contract.method import RequestedMethod
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.prediction import DeviceFacts, OnPredictedOutOfMemory
from finetune_trainer.contract.references import ParentCheckpoint, SecretMount
from finetune_trainer.contract.sharding import Sharding
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, SplitName


class PreflightConfig(StageConfig):
    """Check the base model against the data before a device is requested."""

    not_work: ClassVar[frozenset[str]] = StageConfig.not_work | {
        *("judges", "mfu", "metrics", "options", "sliceBy", "maxRunSeconds"),
    }

    stage: Literal["preflight"] = "preflight"
    base_model_uri: str
    base_model_path: str | None = None
    """Folder under `BASE_MODEL_MOUNT`; None for a model to download."""
    base_model_revision: str | None = None
    """Branch, tag or commit at the hub; None for its main branch."""
    base_model_credentials: SecretMount | None = None
    base_model_digest: Digest | None = None
    """Required digest of the files. With a parent, also the name of the model in the store."""
    base_model_named: bool = False
    """Whether the run names the base model in addition to the parent. Its files are then read, and must be
    those that the parent was trained from. Otherwise the copy in the store is used."""
    parent: ParentCheckpoint | None = None
    """A Checkpoint of this base model in the same store. The run uses the settings of its adapter."""
    dataset: Digest
    test_dataset: Digest | None = None
    """Dataset of the rows to evaluate on, which training must not see; None for the test split of
    `dataset`."""
    test_split: SplitName = "test"
    """Split of `test_dataset`."""
    method: RequestedMethod = RequestedMethod()
    chat_template_kwargs: ChatTemplateKwargs = Field(default={})
    hyperparameters: RequestedHyperparameters = RequestedHyperparameters()
    keep_steps: tuple[int, ...] = ()
    """Steps whose weights the run must keep. The run must reach all of them."""
    nodes: int = 1
    """Number of pods that train together."""
    devices: int = 1
    """Processes per pod, one per accelerator."""
    device: DeviceFacts | None = None
    """Facts about the devices of train; None if nothing about them is known."""
    on_predicted_out_of_memory: OnPredictedOutOfMemory = "Refuse"
    """Whether the stage fails if the prediction says that train cannot fit the device."""
    sharding: Sharding = "Auto"
    """Whether the processes of train shard the weights. Auto: by method and prediction."""
    metrics: tuple[Metric, ...] = ()
    """Metrics of the evaluation that need more than answers and losses."""
    options: MetricOptions = MetricOptions()
    slice_by: str | None = None
    """Kept column of the rows by which the evaluation shows the scores in parts."""
    mfu: float | None = None
    """Median model FLOPs utilization of the profile's last finished runs; None before the first."""
    learning_curve: tuple[float, ...] = ()
    """Shares of the training rows to train on in addition, as in the config of train."""
    max_run_seconds: int | None = None
    """Seconds that train may run; None without a limit. A learning curve must fit."""
    custom_metrics: tuple[CustomMetric, ...] = ()
    """Metrics of the user, whose sources are checked and recorded."""
    judges: tuple[Judge, ...] = ()
    """Judges of the evaluation, whose endpoints are checked."""
    tasks: tuple[EvaluationTask, ...] = ()
    """Tasks of the evaluation, whose files are checked and recorded."""
