# SPDX-License-Identifier: Apache-2.0
"""Progress of a stage, reported while it runs. The chain completes without these reports."""

from typing import Self

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.references import Owner
from finetune_trainer.contract.vocabulary import Stage


class Progress(Contract):
    """Progress of a stage. Losses: means of the last steps in nats per token; for DPO, KTO, ORPO per row."""

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
    """Validation loss after the last epoch."""
    device_memory_bytes: int | None = None
    """Peak GPU memory of tensors; on a CPU, peak memory of the process."""


class Report(Contract):
    """One message to the report endpoint. The highest sequence number wins."""

    contract: int = CONTRACT_VERSION
    owner: Owner
    stage: Stage
    sequence: int
    progress: Progress

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Parse the body of a request, ignoring fields of newer trainers.

        Raises ValidationError.
        """
        return cls.model_validate_json(text, extra="ignore")
