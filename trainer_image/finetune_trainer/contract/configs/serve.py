"""The configs of a serving pod: of its init container and of the engine."""

from typing import Literal

from pydantic import Field

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.environment import ENGINE_FILES_FOLDER, MODELS_MOUNT, SERVE_PORT
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.serving import DefaultSampling
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, CheckpointType


class FetchItem(Contract):
    """One folder to copy for serving."""

    artifact: ArtifactRef
    folder: str
    """Folder name under `MODELS_MOUNT`."""


class EngineFiles(Contract):
    """Files that an engine without code of the trainer needs in addition to the models.

    The folder gets `chat_template.jinja`, the template of all models; `generation_config.json`, which has the
    stop tokens of all models and no sampling settings; and `GUARD_MODULE`, the middleware of `GuardConfig`.
    Such an engine has one template for all of its models and loads plain LoRA only. So fetching fails with
    the reason if the templates differ, or if an adapter has DoRA, modules_to_save or a higher rank.
    """

    folder: str = ENGINE_FILES_FOLDER
    """Folder name under `destination`."""
    max_lora_rank: int


class FetchConfig(Contract):
    """Copy the folders that a serving pod needs, and verify the digest of every file."""

    contract: int = CONTRACT_VERSION
    stage: Literal["fetch"] = "fetch"
    owner: Owner
    store: StoreConfig
    items: tuple[FetchItem, ...]
    destination: str = MODELS_MOUNT
    engine_files: EngineFiles | None = Field(default=None, json_schema_extra={"since": 2, "essential": True})
    """None: the engine is that of the trainer image, which needs no more files."""


class ServedModel(Contract):
    """A model name of the endpoint."""

    name: str
    folder: str
    """Folder name under `MODELS_MOUNT`."""
    type: CheckpointType = "Adapter"
    chat_template_kwargs: ChatTemplateKwargs = Field(
        default={}, json_schema_extra={"since": 2, "essential": True}
    )
    """Arguments for the chat template in requests that do not set them."""


class ServeConfig(Contract):
    """Serve models with the Transformers engine."""

    contract: int = CONTRACT_VERSION
    stage: Literal["serve"] = "serve"
    owner: Owner
    base_folder: str
    """Folder name of the base model under `MODELS_MOUNT`. It is served under the name `base`."""
    models: tuple[ServedModel, ...] = ()
    models_path: str = MODELS_MOUNT
    port: int = SERVE_PORT
    max_batch_size: int = 8
    """Max number of requests that are answered at the same time."""
    max_queue: int = 64
    """Max number of requests that wait. More are refused."""
    max_model_length: int = 4096
    """Max tokens of prompt and answer together; at most the context of the model."""
    max_tokens: int | None = Field(default=None, json_schema_extra={"since": 2, "essential": True})
    """Max tokens of an answer: the default of requests, and the limit of those that ask for more."""
    request_deadline_seconds: int | None = Field(
        default=None, json_schema_extra={"since": 2, "essential": True}
    )
    """Seconds from the arrival of a request after which it is ended. None: no deadline."""
    default_sampling: DefaultSampling = Field(
        default=DefaultSampling(), json_schema_extra={"since": 2, "essential": True}
    )
    reasoning_parser: str | None = Field(default=None, json_schema_extra={"since": 2, "essential": True})
    """Parser of all models. None: the one that fits the chat template of each model."""
    drain_seconds: float = 10
    """Seconds after SIGTERM during which the pod still accepts requests."""
    api_keys_path: str | None = Field(default=None, json_schema_extra={"since": 2})
    """Folder with the API keys, one file per key. None: requests need no key."""
