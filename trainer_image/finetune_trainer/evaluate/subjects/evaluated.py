# SPDX-License-Identifier: Apache-2.0
"""A model that is measured, ready to load."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.examples import Example


@dataclass(frozen=True)
class Weights:
    """Folders of the weights of a model."""

    base: Path
    """A whole model."""
    adapter: Path | None = None
    quantized: bool = False
    """Whether the linear layers of the base model are in 4 bits."""


@dataclass(frozen=True)
class EvaluatedSubject:
    """A subject with the rows as its prompts have them."""

    name: Subject
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    """With the chat template of its prompts."""
    examples: Sequence[Example]
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end an answer by the files of its Checkpoint."""
