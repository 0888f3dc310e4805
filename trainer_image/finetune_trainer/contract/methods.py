# SPDX-License-Identifier: Apache-2.0
"""Training methods. All other code reads their properties from `METHODS`.

A new method is a row here, a member of `MethodType`, and the module that trains it
(`finetune_trainer.train.modelsetup`, or one in `finetune_trainer.train.preference`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_trainer.contract.vocabulary import (
    ADAPTER,
    COMPLETION_FORMS,
    FULL_MODEL,
    CheckpointType,
    RowForm,
)

MethodType = Literal["LoRA", "QLoRA", "Full", "DPO", "KTO", "ORPO"]
DEFAULT_METHOD: Final = "LoRA"


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Kind of rows that a method learns from."""

    forms: tuple[RowForm, ...]
    description: str
    is_preference_data: bool
    """Whether rows are preference data. The loss is then computed per row, and answers have rewards."""


COMPLETIONS: Final = TrainingRows(
    COMPLETION_FORMS, "prompts and completions, or chats", is_preference_data=False
)
PAIRS: Final = TrainingRows(
    ("Preference",), "a prompt, a chosen and a rejected answer (format Preference)", is_preference_data=True
)
LABELLED: Final = TrainingRows(
    ("KTO",), "a prompt, a completion and a label true or false (format KTO)", is_preference_data=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """Properties of a training method."""

    rows: TrainingRows
    checkpoint_type: CheckpointType = ADAPTER
    quantized_base: bool = False
    """Whether the base model is quantized to 4 bits."""
    sequences_per_row: int = 1
    """Sequences per row in the forward pass."""
    learning_rate: float
    """Default. If it `scales_with_width`, the default at a hidden size of 2,000."""
    scales_with_width: bool = False
    """Whether the default learning rate falls with the hidden size."""
    memory_advice: str = ""
    """How to train the same rows in less memory, in a new run."""

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter is trained on a frozen base model. Otherwise all weights are trained."""
        return self.checkpoint_type == ADAPTER

    @property
    def sharded_by_default(self) -> bool:
        """Whether several processes shard the weights unless they are requested not to."""
        return not self.trains_adapter


# DPO and ORPO use the rates of TRL's scripts with an adapter (trl/scripts/dpo.py and
# examples/scripts/orpo.py), KTO the upper end of the range that TRL's page recommends for all weights.
METHODS: Final[Mapping[MethodType, MethodInfo]] = {
    "LoRA": MethodInfo(
        rows=COMPLETIONS,
        learning_rate=5e-4,
        scales_with_width=True,
        memory_advice="method.type: QLoRA, whose base model takes a quarter",
    ),
    "QLoRA": MethodInfo(
        rows=COMPLETIONS,
        quantized_base=True,
        learning_rate=5e-4,
        scales_with_width=True,
    ),
    "Full": MethodInfo(
        rows=COMPLETIONS,
        checkpoint_type=FULL_MODEL,
        learning_rate=5e-5,
        scales_with_width=True,
        memory_advice="method.type: LoRA instead of Full",
    ),
    "DPO": MethodInfo(rows=PAIRS, sequences_per_row=2, learning_rate=5e-6),
    "KTO": MethodInfo(rows=LABELLED, sequences_per_row=2, learning_rate=5e-6),
    "ORPO": MethodInfo(rows=PAIRS, sequences_per_row=2, learning_rate=8e-5),
}


def methods_where(predicate: Callable[[MethodInfo], bool]) -> tuple[MethodType, ...]:
    """Methods that meet the predicate, in the order of the table."""
    return tuple(method for method, info in METHODS.items() if predicate(info))
