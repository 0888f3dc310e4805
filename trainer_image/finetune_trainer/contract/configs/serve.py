"""The configs of a serving pod: of its init container and of the engine."""

from typing import Literal

from pydantic import Field

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.environment import MODELS_MOUNT, SERVE_PORT
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, CheckpointType


class FetchItem(Contract):
    """One folder to copy for serving."""

    artifact: ArtifactRef
    folder: str
    """Folder name under `MODELS_MOUNT`."""


class FetchConfig(Contract):
    """Copy the folders that a serving pod needs, and verify the digest of every file."""

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
    max_queue: int = 64
    max_model_length: int = 4096
    drain_seconds: float = 10
    """Seconds after SIGTERM during which the pod still accepts requests."""
    api_keys_path: str | None = Field(default=None, json_schema_extra={"since": 2})
    """Folder with the API keys, one file per key. None: requests need no key."""
