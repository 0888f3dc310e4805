"""The config of the stage that checks the base model against the data."""

from typing import Literal

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.hyperparameters import RequestedHyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.references import ParentCheckpoint, SecretMount


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
