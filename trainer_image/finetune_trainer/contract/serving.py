# SPDX-License-Identifier: Apache-2.0
"""Messages of an endpoint's processes: their configs and results.

Configs are those of the serving pod with its init container and engine, of the model cache, of the process
that puts a base model into the store, and of the process that merges an adapter into its base model. The API
shares the default sampling parameters.
"""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract, Digest, PodPath, SharedPart
from finetune_trainer.contract.environment import METRICS_PORT, MODELS_MOUNT, SERVE_PORT
from finetune_trainer.contract.references import ArtifactRef, ImageVolume, Owner, SecretMount, StoreConfig
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, CheckpointType

EngineName = Literal["VLLM", "Transformers"]
"""Engine of an endpoint. Transformers is that of the trainer image."""
REASONING_PARSERS: Final = ("openai_gptoss", "muse_glimmer", "gemma4", "glm45", "deepseek_r1", "qwen3")
"""Parsers of the built-in engine, with the names that vLLM has for them."""


class DefaultSamplingFields(BaseModel):
    """Sampling parameters of requests that do not set them, named as in the OpenAI API."""

    temperature: Annotated[
        float | None, Field(ge=0, le=2, description="Sampling temperature; 0 for greedy answers. Default: 1.")
    ] = None
    top_p: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Nucleus sampling: share of the probability of the tokens that are considered."
            " Default: 1.",
        ),
    ] = None


class DefaultSampling(DefaultSamplingFields, SharedPart):
    """Sampling parameters of requests that do not set them."""


class FetchItem(Contract):
    """One folder to copy for serving."""

    artifact: ArtifactRef
    folder: str
    """Folder name under `MODELS_MOUNT`."""
    probe: Digest | None = None
    """Digest of what the weights predicted when they were published. None if no record exists."""
    merged: Digest | None = None
    """Digest of the merged weights, which are derived from the artifact. None: the artifact itself."""
    in_cache: bool = False
    """Whether the folder is read in place in the model cache or image, instead of copied from the store."""


class FillConfig(Contract):
    """Copy a whole model from the store into the model cache, and verify the digest of every file there."""

    contract: int = CONTRACT_VERSION
    stage: Literal["fill"] = "fill"
    owner: Owner
    store: StoreConfig
    cache: StoreConfig
    """The model cache, which has the layout of a store."""
    artifact: ArtifactRef
    merged: Digest | None = None
    """Digest of the merged weights, which are derived from the artifact. None: the artifact itself."""


class FetchConfig(Contract):
    """Copy the folders that a serving pod needs, and verify the digest of every file."""

    contract: int = CONTRACT_VERSION
    stage: Literal["fetch"] = "fetch"
    owner: Owner
    store: StoreConfig
    items: tuple[FetchItem, ...]
    destination: PodPath = MODELS_MOUNT
    cache: StoreConfig | None = None
    """The model cache, mounted read-only. None: no item is in it."""
    image: ImageVolume | None = None
    """OCI image whose files are those of the item that is in the cache. None: the cache is a volume."""
    engine: EngineName = "Transformers"
    """Engine that reads the folders. For VLLM, `VLLM_MOUNT` gets the files that vLLM needs besides them."""
    max_lora_rank: int | None = None
    """Highest rank of an adapter that the engine loads. None: any.

    Such an engine loads plain LoRA only, so fetching fails with the reason if an adapter has a higher rank,
    DoRA or modules_to_save.
    """


class ServedModel(Contract):
    """A model name of the endpoint."""

    name: str
    folder: str
    """Folder name under `MODELS_MOUNT`."""
    type: CheckpointType = "Adapter"
    chat_template_kwargs: ChatTemplateKwargs = Field(default={})
    """Arguments for the chat template in requests that do not set them."""


class ServeConfig(Contract):
    """Serve models. The Transformers engine reads all fields.

    vLLM has options of its own for the model and its limits. The middleware in its process reads the names of
    models, `max_batch_size`, `max_queue`, `drain_seconds`, `request_deadline_seconds`, `api_keys_path` and
    `metrics_port`.
    """

    contract: int = CONTRACT_VERSION
    stage: Literal["serve"] = "serve"
    owner: Owner
    base_folder: str
    """Folder name of the base model under `MODELS_MOUNT`. It is served under the name `base`."""
    models: tuple[ServedModel, ...] = ()
    models_path: PodPath = MODELS_MOUNT
    port: int = SERVE_PORT
    max_batch_size: int = 8
    """Max number of requests that are answered at the same time."""
    max_queue: int = 64
    """Max number of requests that wait. More are refused."""
    max_model_length: int = 4096
    """Max tokens of prompt and answer together; at most the context of the model."""
    max_tokens: int | None = None
    """Max tokens of an answer: the default of requests, and the limit of those that ask for more."""
    request_deadline_seconds: int | None = None
    """Seconds from the arrival of a request after which it is ended. None: no deadline."""
    default_sampling: DefaultSampling = DefaultSampling()
    reasoning_parser: str | None = None
    """Parser of all models. None: the one that fits the chat template of each model."""
    drain_seconds: float = 10
    """Seconds after SIGTERM during which the pod still accepts requests."""
    api_keys_path: PodPath | None = None
    """Folder with the API keys, one file per key. None: requests need no key."""
    metrics_port: int = METRICS_PORT
    """Port of vLLM's metrics. The Transformers engine has its metrics on `port`."""


class DownloadConfig(Contract):
    """Put the base model that an endpoint serves alone into the store, unless the store has it."""

    parent: ClassVar[None] = None
    """The base model is named by its uri, not by a Checkpoint."""

    contract: int = CONTRACT_VERSION
    stage: Literal["download"] = "download"
    owner: Owner
    run: str
    """Folder under `runs/` of a download in progress: the uid of the endpoint."""
    store: StoreConfig
    base_model_uri: str
    base_model_path: PodPath | None = None
    """Folder under `BASE_MODEL_MOUNT`; None for a model to download."""
    base_model_revision: str | None = None
    """Branch, tag or commit at the hub; None for its main branch."""
    base_model_credentials: SecretMount | None = None
    base_model_digest: Digest | None = None
    """Required digest of the files. A model of this digest that is in the store is not read again."""


class StoredModel(Contract):
    """Result of a download: the termination message of its pod."""

    digest: Digest = Field(description="Digest of the base model in the store.")


class MergeConfig(Contract):
    """Write the base model with an adapter as bfloat16 weights, derived from the adapter's Checkpoint."""

    contract: int = CONTRACT_VERSION
    stage: Literal["merge"] = "merge"
    owner: Owner
    store: StoreConfig
    checkpoint: ArtifactRef
    """The adapter."""
    base_model: Digest
    probe: Digest | None = None
    """Digest of what the adapter predicted when it was published. None if no record exists."""


class MergedWeights(Contract):
    """Result of a merge: the termination message of its pod. Its folders are derived from the Checkpoint."""

    weights: Digest = Field(description="Digest of the merged weights.")
    probe: Digest = Field(description="Digest of what the merged weights predict.")
