"""How far a stage is; reported on the way, and the chain completes without."""

from typing import Self

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.references import Owner
from finetune_trainer.contract.vocabulary import Stage


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
