# SPDX-License-Identifier: Apache-2.0
"""Configs of all processes of the trainer, and `CONFIG_ADAPTER`, which parses any of them.

A process is a stage of a run or Dataset, a container next to a stage (prompts, answers, score), the analysis
of an endpoint, or one that works on the store alone (collect, cleanup). `serving` has the configs of an
endpoint's processes.
"""

import hashlib
import json
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, TypeAdapter

from finetune_trainer.contract.accelerators import DeviceFacts
from finetune_trainer.contract.analysis import DEFAULT_MIN_ROWS, AnalysisGateBound, PrometheusSource
from finetune_trainer.contract.base import CONTRACT_VERSION, Contract, Digest, PodPath
from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.environment import ANSWERS_MOUNT, METRICS_PORT, SERVE_PORT
from finetune_trainer.contract.evaluation import (
    AnswerEngine,
    EvaluationChecks,
    GateBound,
    GenerationSettings,
    LiveModel,
    MetricOptions,
    PromptedModel,
)
from finetune_trainer.contract.hyperparameters import Hyperparameters, RequestedHyperparameters
from finetune_trainer.contract.method import Method, RequestedMethod, Sharding
from finetune_trainer.contract.metrics import DEFAULT_METRICS, Metric
from finetune_trainer.contract.own_metrics import CustomMetric, EvaluationTask, Judge
from finetune_trainer.contract.prediction import OnPredictedOutOfMemory
from finetune_trainer.contract.references import (
    ArtifactRef,
    Owner,
    ParentCheckpoint,
    ReportTarget,
    SecretMount,
    StoreConfig,
)
from finetune_trainer.contract.results import SourceRows, StageResult
from finetune_trainer.contract.serving import (
    DownloadConfig,
    FetchConfig,
    FillConfig,
    MergeConfig,
    ServeConfig,
)
from finetune_trainer.contract.vocabulary import (
    ANALYZE,
    ChatTemplateKwargs,
    CheckpointType,
    DataFormat,
    SourceSplits,
    SplitName,
    Stage,
    Subject,
)

STEP_TIMEOUT_SECONDS: Final = 1800
"""Default of `step_timeout_seconds`."""


class StageConfig(Contract):
    """Fields of every stage's config."""

    not_work: ClassVar[frozenset[str]] = frozenset({"contract", "nonce", "report", "accelerators"})
    """Wire names of the fields that may differ between two Jobs for the same work."""

    contract: int = CONTRACT_VERSION
    owner: Owner
    run: str
    """Folder under `runs/`: the uid of a FineTuneJob, or uid, generation and check number of a Dataset."""
    store: StoreConfig
    report: ReportTarget | None = None
    nonce: str | None = None
    """Repeated in the result, which binds the result to the Job created with it."""
    accelerators: int = 0
    """CUDA devices that the pod requests; 0 if it requests none."""

    @property
    def digest(self) -> str:
        """SHA-256 of the work to do, as 64 hexadecimal digits.

        Excludes the fields of `not_work`.
        """
        work = {key: value for key, value in self.to_dict().items() if key not in self.not_work}
        return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()

    def bind(self, result: StageResult) -> StageResult:
        """Bind a result to this config's Job: set its contract version, nonce and config digest."""
        return result.model_copy(
            update={"contract": self.contract, "nonce": self.nonce, "config_digest": self.digest}
        )


class SourceConfig(Contract):
    """One source of rows, and how to read it."""

    field: str = "source"
    """Field of the spec that names the source, such as `sources[0]`, for messages."""
    uri: str
    path: PodPath | None = None
    """File, folder of files, or path with a pattern such as `rows-*.jsonl` as its last part, under
    `SOURCES_MOUNT`; None for a source to download."""
    credentials: SecretMount | None = None
    """Secret for this source only."""
    format: DataFormat | None = None
    columns: Columns = Columns()
    splits: SourceSplits = "All"
    known_version: str | None = None
    """Version of the content that the last check read. If all sources still have theirs, there is nothing to
    do."""


class PrepareConfig(StageConfig):
    """Make a dataset folder from the rows of some sources, which are read in this order."""

    stage: Literal["prepare"] = "prepare"
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    template: str | None = None
    cleaning: Cleaning = Cleaning()
    checks: Checks = Checks()
    split: Split = Split()
    rule_version: int = 1
    """Version of the rules for reading and comparing rows, one of `RULE_VERSIONS`."""
    keep_columns: tuple[str, ...] = ()
    """Columns of the source that stay with each row, as `Row.columns`."""
    on_invalid_rows: Literal["Fail", "Drop"] = "Fail"
    max_invalid_fraction: float | None = None
    max_unpacked_bytes: int | None = None
    """Max total size of the unpacked files, and of the rows made of them. None: the trainer's own bound. Not
    part of the preparation's digest, because it does not change the rows."""
    previous: Digest | None = None
    """The Dataset's previous version, to compare with."""
    previous_sources: tuple[SourceRows, ...] = ()
    """Origin of the rows of the previous version; empty if it is unknown."""


class PreflightConfig(StageConfig):
    """Check the base model against the data before a device is requested."""

    not_work: ClassVar[frozenset[str]] = StageConfig.not_work | {
        *("judges", "mfu", "metrics", "options", "sliceBy", "maxRunSeconds", "hostMemoryBytes"),
    }

    stage: Literal["preflight"] = "preflight"
    base_model_uri: str
    base_model_path: PodPath | None = None
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
    host_memory_bytes: int | None = None
    """Memory of a train pod whose devices are CPU cores, in bytes; None for other devices, or if the pod gets
    what is predicted."""
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
    peer_key_path: PodPath | None = None
    """Key file by which the pods of the run authenticate to each other; None if the run has one pod."""
    learning_curve: tuple[float, ...] = ()
    """Shares of the training rows, above 0 and below 1, to train on after the run itself, in this order."""
    group_by: str | None = None
    """Column of the source whose rows are together in one split, and count as one in the intervals of the
    learning curve; None: independent rows, or no curve."""
    max_run_seconds: int | None = None
    """Seconds that the stage may run. A training of the learning curve that would exceed them is left out."""


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


class PromptsConfig(Contract):
    """Write the prompts of the rows that an evaluation has not measured yet."""

    contract: int = CONTRACT_VERSION
    stage: Literal["prompts"] = "prompts"
    evaluate: EvaluateConfig


class AnswerServer(Contract):
    """A server of the engine, and the subjects that it answers for."""

    command: tuple[str, ...]
    models: dict[Subject, str]
    """Served name of the model of each subject."""


class AnswersConfig(Contract):
    """Answer the prompts: start the servers one after the other, each with the whole memory of the devices.

    The process runs in the image of the engine, which has other versions of libraries than the trainer's.
    """

    contract: int = CONTRACT_VERSION
    stage: Literal["answers"] = "answers"
    servers: tuple[AnswerServer, ...]
    folder: PodPath = ANSWERS_MOUNT
    port: int = SERVE_PORT
    """Port of the servers, on the loopback address of the pod."""
    step_timeout_seconds: int = STEP_TIMEOUT_SECONDS
    """Seconds without a finished answer after which the server is ended."""


class ScoreConfig(StageConfig):
    """Compute the user's metrics of answers that an evaluation has generated.

    The pod has no store, no credentials and no network: it mounts two folders, and its result is its
    termination message.
    """

    stage: Literal["score"] = "score"
    predictions_path: PodPath
    """Folder of the evaluate stage in the run's folder."""
    dataset_path: PodPath
    """Folder of the dataset."""
    split: SplitName = "test"
    group_by: str | None = None
    """Column of the source whose rows are together in one split, and count as one; None: independent rows."""
    metrics: tuple[CustomMetric, ...]
    gates: tuple[GateBound, ...] = ()
    """Bounds for which the result has evidence, as in the config of evaluate. Those of other metrics are
    ignored."""


MAX_ANALYZED_PODS: Final = 16
"""Pods of each revision that are measured. Those of larger revisions are a sample."""


class ProbedModel(Contract):
    """A model of an endpoint, and the dataset whose test rows are sent to it."""

    name: str
    dataset: Digest | None = None
    """None if the store has no rows for it. Then gates on answers are inconclusive."""
    is_new: bool = False
    """Whether the stable revision has no model of this name, so that there is nothing to compare."""
    reasoning_parser: str | None = None
    """Parser that separates the reasoning from the expected answers; None if they have none."""


class AnalysisProbe(Contract):
    """Requests that the analysis sends, for gates on answers or if it would be inconclusive.

    The pods count them.
    """

    requests: int
    """Number of requests to each revision."""
    min_rows: int = DEFAULT_MIN_ROWS
    """Rows that each model must answer before a gate on answers decides."""
    models: tuple[ProbedModel, ...]
    pods: tuple[str, ...]
    """Base URLs of the API of the new revision's pods, in the order of `AnalyzeConfig.pods`."""
    stable_pods: tuple[str, ...] = ()
    """Those of the stable revision, in the order of `AnalyzeConfig.stable_pods`."""
    digests: tuple[Digest, ...] = ()
    """Digests of the models that the new revision's pods have. Another pod may get the address of one that
    has ended: an address gets a request only if its metrics name models with these digests and no others."""
    stable_digests: tuple[Digest, ...] = ()
    api_keys_path: PodPath | None = None
    """Folder with the API keys of the endpoint; None if it needs none."""


class AnalyzeConfig(StageConfig):
    """Measure the pods of a new revision, and decide its gates.

    Its result is its termination message. Without probes the pod has no store.
    """

    stage: Literal["analyze"] = ANALYZE
    pods: tuple[str, ...]
    """URLs of the metrics of the new revision's pods."""
    stable_pods: tuple[str, ...] = ()
    """URLs of those of the stable revision. Without them comparisons are inconclusive."""
    baseline: Literal["Concurrent", "Past"] = "Concurrent"
    """Requests of the stable revision to compare with: those in the same time, or, if it gets none any more,
    those since its pods started."""
    gates: tuple[AnalysisGateBound, ...]
    duration_seconds: int
    max_duration_seconds: int
    whole_duration: bool = False
    """Whether the measurement passes only after the max duration. It can fail earlier."""
    min_requests: int
    probe: AnalysisProbe | None = None
    prometheus: PrometheusSource | None = None


class CollectConfig(StageConfig):
    """Read the result of a stage whose pod no longer exists."""

    stage: Literal["collect"] = "collect"
    of: Stage
    probe: bool = False
    """First write a small file into the stage's folder and remove it, to check that the store is usable."""

    def bind(self, result: StageResult) -> StageResult:
        """Bind the result to this Job. Its config digest remains that of the stage's own config."""
        return result.model_copy(update={"contract": self.contract, "nonce": self.nonce})


class CleanupConfig(Contract):
    """Remove one folder from the store, of an artifact or a run. Succeeds if the folder is already gone."""

    contract: int = CONTRACT_VERSION
    stage: Literal["cleanup"] = "cleanup"
    owner: Owner
    store: StoreConfig
    artifact: ArtifactRef | None = None
    run: str | None = None
    """Folder under `runs/`. The run has no pods any more."""


AnyConfig = Annotated[
    PrepareConfig
    | PreflightConfig
    | TrainConfig
    | EvaluateConfig
    | ScoreConfig
    | AnalyzeConfig
    | CollectConfig
    | CleanupConfig
    | PromptsConfig
    | AnswersConfig
    | DownloadConfig
    | MergeConfig
    | FillConfig
    | FetchConfig
    | ServeConfig,
    Field(discriminator="stage"),
]
CONFIG_ADAPTER: Final[TypeAdapter[AnyConfig]] = TypeAdapter(AnyConfig)
