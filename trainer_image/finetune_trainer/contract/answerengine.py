# SPDX-License-Identifier: Apache-2.0
"""The engine that generates the answers of an evaluation."""

from typing import Annotated

from pydantic import Field

from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.environment import ANSWERS_MOUNT
from finetune_trainer.contract.serving import EngineName


class AnswerEngine(Contract):
    """What a ComputeProfile with another engine than the built-in one means for an evaluation."""

    name: EngineName
    """Transformers: the trainer generates the answers, because of `unsupported`."""
    image: str | None = None
    """Image of the engine's container."""
    max_lora_rank: int | None = None
    """Highest rank of the adapters; None if there are none."""
    arguments: tuple[str, ...] = ()
    """Arguments of the user for its command."""
    unsupported: Annotated[str, Field(max_length=512)] = ""
    """What the engine of the ComputeProfile cannot load, and what to do, as a sentence for the user."""
    folder: str = ANSWERS_MOUNT
    """Folder of the pod in which prompts and answers are exchanged."""

    @property
    def is_separate(self) -> bool:
        """Whether the answers are generated in a container of their own."""
        return self.image is not None


class EngineVersion(Contract):
    """The engine that generated answers."""

    name: EngineName
    version: str
