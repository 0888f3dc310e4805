"""The config of the stage that trains."""

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.environment import METRICS_PORT
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.references import ParentCheckpoint

STEP_TIMEOUT_SECONDS: Final = 1800


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
