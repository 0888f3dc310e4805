# SPDX-License-Identifier: Apache-2.0
"""The configs of the containers in which a serving engine generates the answers of an evaluation."""

from typing import Literal

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.configs.evaluate import EvaluateConfig
from finetune_trainer.contract.configs.stage import STEP_TIMEOUT_SECONDS
from finetune_trainer.contract.environment import ANSWERS_MOUNT, SERVE_PORT
from finetune_trainer.contract.vocabulary import Subject


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
    folder: str = ANSWERS_MOUNT
    port: int = SERVE_PORT
    """Port of the servers, on the loopback address of the pod."""
    step_timeout_seconds: int = STEP_TIMEOUT_SECONDS
    """Seconds without a finished answer after which the server is ended."""
