"""The contract between operator and trainer; the one module that both sides import.

In: one JSON config in the environment variable `FINETUNE_CONFIG`; fields at their default are left out,
but for `contract` and `stage`.
Out: `result.json` in the run's folder of the store, written last, and the same in the termination message.
On the way: reports POSTed to the operator; the chain completes without them.

Versions: a release speaks `CONTRACT_VERSION` and the version before it. A field that an older version does
not know is marked in its Field, `json_schema_extra={"since": 2}`, and is left out of its messages.
Add `"essential": True` if the reader must not run without the field once it is set: the operator then blocks
with a condition instead of leaving it out. Configs are read strictly, results and reports leniently.

Nothing here imports torch, and nothing ever may.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from finetune_trainer.lenient import lenient_validator

CONTRACT_VERSION: Final = 2
CONTRACT_VERSIONS: Final = (CONTRACT_VERSION - 1, CONTRACT_VERSION)
"""Versions that this release reads and writes."""

RULE_VERSION: Final = 2
"""Newest version of the rules by which prepare reads and compares rows; docs/data.md has what each does."""

CONFIG_ENV: Final = "FINETUNE_CONFIG"
CONFIG_LIMIT: Final = 64 * 1024
"""Largest config in bytes; one environment variable takes at most 131,071."""

TERMINATION_MESSAGE_PATH: Final = "/dev/termination-log"
TERMINATION_MESSAGE_LIMIT: Final = 3500
"""Largest result in bytes; the kubelet keeps 4,096 of all containers' messages together."""

STORE_MOUNT: Final = "/mnt/store"
SOURCE_MOUNT: Final = "/mnt/source"
BASE_MODEL_MOUNT: Final = "/mnt/base-model"
MODELS_MOUNT: Final = "/mnt/models"
"""Where a serving pod's init container puts what it fetched, and the server reads it."""
CREDENTIALS_MOUNT: Final = "/var/run/finetune/credentials"
"""Holds a folder for each Secret of type `finetune.dev/credentials` that the pod has, one file a key."""
API_KEYS_MOUNT: Final = "/var/run/finetune/api-keys"
"""Holds the API keys of an endpoint, one file a key."""
SCRATCH_MOUNT: Final = "/tmp"  # noqa: S108 - an emptyDir; the root file system is read-only

REPORT_TOKEN_PATH: Final = "/var/run/finetune/report/token"
REPORT_AUDIENCE: Final = "finetune-report"
REPORT_PATH: Final = "/v1/reports"

SERVE_PORT: Final = 8000
METRICS_PORT: Final = 9090
"""Prometheus port of a training pod."""
STEP_TIMEOUT_SECONDS: Final = 1800
RENDEZVOUS_PORT: Final = 29500
"""Where the processes of a run meet: a port of the pod with index 0."""
PEER_KEY_MOUNT: Final = "/var/run/secrets/finetune/peers"
PEER_KEY_FILE: Final = "key"
"""Of the Secret that is mounted there in each pod of a run that has several: 32 random bytes."""
NODE_RANK_ENV: Final = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in the pods of an Indexed Job: the pod's index."""


class Contract(BaseModel):
    """Base of all messages: frozen, camelCase on the wire, unknown fields refused unless read leniently.

    Numbers are finite: NaN and Infinity are no JSON, and the API server would refuse a status with them.
    """

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    def to_json(self) -> str:
        """The wire form of `to_dict`."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """The wire form as JSON types, without fields at their default and those newer than its `contract`.

        `contract` and `stage` are always there: they decide how the reader takes the rest, and its defaults
        may be another version's.
        """
        version = getattr(self, "contract", CONTRACT_VERSION)
        message = self.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude=_newer_fields(self, version)
        )
        leading: dict[str, Any] = {
            name: getattr(self, name) for name in ("contract", "stage") if name in type(self).model_fields
        }
        return {**leading, **message}

    def unsent(self) -> tuple[str, ...]:
        """Wire paths of essential fields that are set, and that the message's `contract` does not know."""
        return tuple(_essential_paths(self, getattr(self, "contract", CONTRACT_VERSION)))


def _marks(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _is_newer(field: FieldInfo, version: int) -> bool:
    return int(_marks(field).get("since", 1)) > version


def _newer_fields(message: BaseModel, version: int) -> dict[str, Any]:
    """What pydantic's `exclude` takes: the fields, at any depth, that `version` does not know."""
    newer: dict[str, Any] = {}
    for name, field in type(message).model_fields.items():
        value = getattr(message, name)
        if _is_newer(field, version):
            newer[name] = True
        elif isinstance(value, Contract):
            newer[name] = _newer_fields(value, version)
        elif isinstance(value, tuple):
            newer[name] = {
                i: _newer_fields(item, version) for i, item in enumerate(value) if isinstance(item, Contract)
            }
    return {name: fields for name, fields in newer.items() if fields}


def _essential_paths(message: BaseModel, version: int, prefix: str = "") -> Iterator[str]:
    for name, field in type(message).model_fields.items():
        value, path = getattr(message, name), f"{prefix}{field.alias or name}"
        if _is_newer(field, version):
            if _marks(field).get("essential") and value != field.get_default(call_default_factory=True):
                yield path
        elif isinstance(value, Contract):
            yield from _essential_paths(value, version, f"{path}.")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if isinstance(item, Contract):
                    yield from _essential_paths(item, version, f"{path}[{i}].")


class ExitCode(IntEnum):
    """How a trainer process ends; the Jobs' podFailurePolicy is built from these."""

    OK = 0
    INTERNAL = 1
    """Unforeseen; counts as a failed attempt."""
    BAD_CONFIG = 10
    """Config, model or method cannot work; trying again is useless."""
    BAD_DATA = 11
    """The rows are at fault; trying again is useless."""
    STORE_UNAVAILABLE = 12
    """The store could not be read or written; counts, and is tried again."""
    PREEMPTED_SAVED = 20
    """SIGTERM arrived and the state is saved; never counts as a failure."""
    PEER_LOST = 21
    """Another pod of this run went away; never counts as a failure."""


class FailureReason(StrEnum):
    """Reasons a stage may fail with; they become the reason of the Stalled condition."""

    INVALID_CONFIG = "InvalidConfig"
    CONTRACT_MISMATCH = "ContractMismatch"
    SOURCE_NOT_FOUND = "SourceNotFound"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    SOURCE_TOO_LARGE = "SourceTooLarge"
    ACCESS_DENIED = "AccessDenied"
    ADDRESS_REFUSED = "AddressRefused"
    INVALID_CREDENTIALS = "InvalidCredentials"
    INVALID_DATA = "InvalidData"
    NO_TRAINING_ROWS = "NoTrainingRows"
    BASE_MODEL_NOT_FOUND = "BaseModelNotFound"
    BASE_MODEL_INVALID = "BaseModelInvalid"
    BASE_MODEL_DIGEST_MISMATCH = "BaseModelDigestMismatch"
    BASE_MODEL_MISMATCH = "BaseModelMismatch"
    SEQUENCE_TOO_LONG = "SequenceTooLong"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    FINGERPRINT_MISMATCH = "FingerprintMismatch"
    STORE_UNAVAILABLE = "StoreUnavailable"
    LOSS_NOT_FINITE = "LossNotFinite"
    LOSS_DIVERGED = "LossDiverged"
    OUT_OF_MEMORY = "OutOfMemory"
    STEP_TIMEOUT = "StepTimeout"
    RESTARTED_WITHOUT_PROGRESS = "RestartedWithoutProgress"
    INTERNAL = "Internal"


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Stage = Literal["prepare", "preflight", "train", "evaluate"]
MethodType = Literal["LoRA", "QLoRA", "Full", "DPO", "KTO", "ORPO"]
PREFERENCE_METHODS: Final[frozenset[MethodType]] = frozenset({"DPO", "KTO", "ORPO"})
"""Methods that learn from judged answers; the others learn from the answers alone."""
CheckpointType = Literal["Adapter", "Full"]
Metric = Literal["exact_match", "loss", "preference_accuracy"]
DataFormat = Literal[
    "PromptCompletion",
    "ChatMessages",
    "CSV",
    "TSV",
    "Parquet",
    "Alpaca",
    "ShareGPT",
    "LabelStudio",
    "Doccano",
    "Preference",
    "KTO",
]
NearDuplicates = Literal["Off", "Keep", "Remove"]
Finding = Literal["Off", "Warn", "Redact", "Fail"]
Subject = Literal["Tuned", "Base"]
SplitName = Literal["train", "validation", "test"]


class Owner(Contract):
    """The custom resource a pod works for."""

    kind: Literal["FineTuneJob", "Dataset", "DatasetVersion", "Checkpoint", "InferenceDeployment"]
    namespace: str
    name: str
    uid: str


class ReportTarget(Contract):
    """Where progress goes; the token is read from `REPORT_TOKEN_PATH` for every request."""

    url: str
    ca_pem: str


class SecretMount(Contract):
    """A Secret of type `finetune.dev/credentials`, where the pod has it; its name is for messages."""

    name: str
    path: str


class StoreConfig(Contract):
    """The store: its uri for records, and where it is mounted.

    Layout: `datasets/<digest>/`, `models/<digest>/`, `checkpoints/<digest>/`, `runs/<uid>/<stage>/`,
    with the digest's 64 hexadecimal digits as the folder's name.
    """

    uri: str
    path: str = STORE_MOUNT
    """Where the store is mounted; of one in a bucket, the pod's own folder for what it reads and writes."""
    credentials: SecretMount | None = None


class Columns(Contract):
    """Which column or JSON field holds what."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None


class Split(Contract):
    """Fractions of rows, and what the division hangs on; or where the rows say their split themselves."""

    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_by: str | None = None
    column: str | None = None
    from_files: bool = False
    rule_version: int = Field(default=1, json_schema_extra={"since": 2})
    """Of the rules by which rows are read and compared, up to `RULE_VERSION`."""


class Cleaning(Contract):
    """Changes made to rows after they were divided."""

    normalize_whitespace: bool = False
    normalize_unicode: bool = False
    near_duplicates: NearDuplicates = "Keep"
    max_rows_for_near_duplicates: int = 200_000


class Checks(Contract):
    """What is looked for in texts, and what becomes of a row that has it."""

    secrets: Finding = "Warn"
    email_addresses: Finding = "Off"
    payment_cards: Finding = "Warn"
    ibans: Finding = "Warn"
    phone_numbers: Finding = "Off"
    phone_region: str | None = None


class LoRA(Contract):
    """Adapter settings, named as in PEFT."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ()
    rslora: bool = False
    """Scaled by alpha / sqrt(r) instead of alpha / r."""
    dora: bool = False
    """The adapted weights' magnitudes are trained beside their direction."""


class Preference(Contract):
    """Settings of DPO, KTO and ORPO, named as in TRL; None: chosen."""

    beta: float = 0.1
    """How strongly the model is held near the reference; in ORPO the weight of the odds ratio, its λ."""
    desirable_weight: float | None = None
    """KTO: weight of the loss of rows whose label is true."""
    undesirable_weight: float | None = None
    """KTO: weight of the loss of rows whose label is false."""


class Method(Contract):
    """How the weights are changed."""

    type: MethodType = "LoRA"
    lora: LoRA = LoRA()
    """Of every method but Full: all others train an adapter."""
    preference: Preference = Preference()


class RequestedHyperparameters(Contract):
    """What the user gave; the rest is chosen in preflight."""

    epochs: int | None = None
    learning_rate: float | None = None
    per_device_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    max_sequence_length: int | None = None
    seed: int | None = None
    save_every_steps: int | None = None
    early_stopping_patience: int | None = None
    gradient_checkpointing: bool | None = None


class Hyperparameters(Contract):
    """What the run uses; all of it is recorded."""

    epochs: int
    learning_rate: float
    per_device_batch_size: int
    gradient_accumulation_steps: int
    max_sequence_length: int
    seed: int
    total_steps: int
    """Of all epochs; a run that stops early makes fewer."""
    save_every_steps: int
    early_stopping_patience: int | None = None
    """Epochs without a lower validation loss after which the run ends; None: it never ends early."""
    gradient_checkpointing: bool = False
    """Activations are computed again in the backward pass instead of kept."""
    processes: int = 1
    """That train together, each with a batch of its own; nodes times devices."""


class ParentCheckpoint(Contract):
    """The Checkpoint that a run continues from; its name is for messages."""

    name: str
    digest: Digest
    type: CheckpointType = "Adapter"


class ArtifactRef(Contract):
    """A complete folder in the store."""

    kind: Literal["datasets", "models", "checkpoints"]
    digest: Digest


class StageConfig(Contract):
    """What every stage gets."""

    contract: int = CONTRACT_VERSION
    owner: Owner
    run: str
    """Folder under `runs/`: a FineTuneJob's uid, or a Dataset's uid, generation and number of the look."""
    store: StoreConfig
    report: ReportTarget | None = None
    nonce: Annotated[str | None, Field(json_schema_extra={"since": 2})] = None
    """Repeated in the result, which so belongs to the Job that was made with it."""

    @property
    def digest(self) -> str:
        """Of what the stage is to do: 64 hexadecimal digits.

        Without what may differ between two Jobs that do the same.
        """
        same = {
            key: value for key, value in self.to_dict().items() if key not in ("contract", "nonce", "report")
        }
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()

    def answer(self, result: "StageResult") -> "StageResult":
        """The result for the reader of this config's Job: in its version of the contract, with its nonce."""
        return result.model_copy(
            update={"contract": self.contract, "nonce": self.nonce, "config_digest": self.digest}
        )


class PrepareConfig(StageConfig):
    """Rows in, a dataset folder out."""

    stage: Literal["prepare"] = "prepare"
    source_uri: str
    source_path: str | None = None
    """File, folder of files, or a pattern such as `rows-*.jsonl` in its last part, under `SOURCE_MOUNT`; None
    for a source that is read over the network."""
    source_credentials: SecretMount | None = None
    format: DataFormat | None = None
    columns: Columns = Columns()
    template: str | None = None
    cleaning: Cleaning = Cleaning()
    checks: Checks = Checks()
    split: Split = Split()
    on_invalid_rows: Literal["Fail", "Drop"] = "Fail"
    max_invalid_fraction: float | None = None
    max_unpacked_bytes: Annotated[int | None, Field(json_schema_extra={"since": 2, "essential": True})] = None
    """Of the unpacked files together, and of the rows made of them; None: the trainer's own bound. No part of
    the preparation's digest: it decides whether there are rows, and not which."""
    previous: Digest | None = None
    """The Dataset's version before, to be compared with."""
    unless_version: str | None = None
    """Of the source; as long as it has this version there is nothing to do."""


class PreflightConfig(StageConfig):
    """Check the base model against the data before a device is asked for."""

    stage: Literal["preflight"] = "preflight"
    base_model_uri: str
    base_model_path: str | None = None
    """Folder under `BASE_MODEL_MOUNT`; None for a model that is read over the network."""
    base_model_revision: str | None = None
    """Branch, tag or commit at the hub; None for its main branch."""
    base_model_credentials: SecretMount | None = None
    base_model_digest: Digest | None = None
    """What the files must have; with a parent, also what the model is known by in the store."""
    parent: ParentCheckpoint | None = None
    """Trained from this base model and in the same store; the adapter's settings are its own where `method`
    has the defaults."""
    dataset: Digest
    method: Method = Method()
    hyperparameters: RequestedHyperparameters = RequestedHyperparameters()
    keep_steps: tuple[int, ...] = ()
    """Steps whose weights the run is to keep; all of them must be steps that it has."""
    nodes: int = 1
    """Pods that will train together."""
    devices: int = 1
    """Processes of each of them, one an accelerator."""


class TrainConfig(StageConfig):
    """Train, save, publish."""

    stage: Literal["train"] = "train"
    base_model: Digest
    parent: ParentCheckpoint | None = None
    """Its weights are where training begins; the base model is that which it was trained from."""
    dataset: Digest
    method: Method = Method()
    hyperparameters: Hyperparameters
    keep: int = 0
    """How many of the newest regularly saved steps become Checkpoints beside the best and the final one."""
    keep_steps: tuple[int, ...] = ()
    """Steps that become Checkpoints in any case."""
    adapt_batch_size: bool = True
    """Whether batches that do not fit into memory may be halved, and twice as many accumulated."""
    step_timeout_seconds: int = STEP_TIMEOUT_SECONDS
    """The longest time without a finished batch, validation batch or save; the process then ends."""
    metrics_port: int = METRICS_PORT
    nodes: int = 1
    """Pods that train together, each with its index in the environment variable `NODE_RANK_ENV`."""
    devices: int = 1
    """Processes of each pod, one an accelerator; a pod without accelerators has one."""
    coordinator: str | None = None
    """Host name of the pod with index 0; None where there is one pod."""
    peer_key_path: Annotated[str | None, Field(json_schema_extra={"since": 2})] = None
    """File with the key that the run's pods prove to each other that they have; None where there is one."""


class EvaluateConfig(StageConfig):
    """Judge one checkpoint beside its base model on one split."""

    stage: Literal["evaluate"] = "evaluate"
    base_model: Digest
    dataset: Digest
    checkpoint: Digest
    checkpoint_type: CheckpointType = "Adapter"
    split: Literal["test"] = "test"
    metrics: tuple[Metric, ...] = ("exact_match", "loss")
    subjects: tuple[Subject, ...] = ("Tuned", "Base")
    max_sequence_length: int = 2048
    max_new_tokens: int = 256
    batch_size: int = 8
    seed: int = 0


class CollectConfig(StageConfig):
    """Read the result of a stage whose pod is gone."""

    stage: Literal["collect"] = "collect"
    of: Stage
    probe: Annotated[bool, Field(json_schema_extra={"since": 2})] = False
    """Write a small file into the stage's folder and remove it first: whether the store can be used."""

    def answer(self, result: "StageResult") -> "StageResult":
        """The result for the reader of this Job; the config that it belongs to is the stage's own."""
        return result.model_copy(update={"contract": self.contract, "nonce": self.nonce})


class CleanupConfig(Contract):
    """Remove one folder from the store, an artifact's or a run's; that it is gone already is as good."""

    contract: int = CONTRACT_VERSION
    stage: Literal["cleanup"] = "cleanup"
    owner: Owner
    store: StoreConfig
    artifact: ArtifactRef | None = None
    run: Annotated[str | None, Field(json_schema_extra={"since": 2, "essential": True})] = None
    """Folder under `runs/`; no pod of the run is left."""


class FetchItem(Contract):
    """One folder to copy for serving."""

    artifact: ArtifactRef
    folder: str
    """Folder name under `MODELS_MOUNT`."""


class FetchConfig(Contract):
    """Copy and verify what a serving pod needs; every file's digest is checked."""

    contract: int = CONTRACT_VERSION
    stage: Literal["fetch"] = "fetch"
    owner: Owner
    store: StoreConfig
    items: tuple[FetchItem, ...]
    destination: str = MODELS_MOUNT


class ServedModel(Contract):
    """A model name of the endpoint."""

    name: str
    folder: str
    """Folder name under `MODELS_MOUNT`."""
    type: CheckpointType = "Adapter"


class ServeConfig(Contract):
    """The Transformers engine."""

    contract: int = CONTRACT_VERSION
    stage: Literal["serve"] = "serve"
    owner: Owner
    base_folder: str
    """Folder name of the base model under `MODELS_MOUNT`; served under the name `base`."""
    models: tuple[ServedModel, ...] = ()
    models_path: str = MODELS_MOUNT
    port: int = SERVE_PORT
    max_batch_size: int = 8
    max_queue: int = 64
    max_model_length: int = 4096
    drain_seconds: float = 10
    """Seconds after SIGTERM during which the pod still answers requests that were routed to it."""
    api_keys_path: str | None = Field(default=None, json_schema_extra={"since": 2})
    """Folder with the keys that requests need, one file a key; None: they need none."""


AnyConfig = Annotated[
    PrepareConfig
    | PreflightConfig
    | TrainConfig
    | EvaluateConfig
    | CollectConfig
    | CleanupConfig
    | FetchConfig
    | ServeConfig,
    Field(discriminator="stage"),
]
CONFIG_ADAPTER: Final[TypeAdapter[AnyConfig]] = TypeAdapter(AnyConfig)


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


class Progress(Contract):
    """How far a stage is; loss in nats a token, of DPO, KTO and ORPO a row, means of the last steps."""

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
    """After the last epoch."""
    device_memory_bytes: int | None = None
    """The most that tensors took of the GPU, or on a CPU the process of memory."""


class Report(Contract):
    """One message to the report endpoint; the newest sequence number wins."""

    contract: int = CONTRACT_VERSION
    owner: Owner
    stage: Stage
    sequence: int
    progress: Progress

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """The report in a request's body; fields of newer trainers are ignored.

        Raises ValidationError.
        """
        return cls.model_validate_json(text, extra="ignore")
