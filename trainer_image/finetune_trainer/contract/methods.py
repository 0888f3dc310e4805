# SPDX-License-Identifier: Apache-2.0
"""Training methods: an objective, and a type that says which weights are trained.

All other code reads their properties from `OBJECTIVES`, `TYPES` and `METHODS`. Each pair that the trainer can
train is a row of `METHODS`. A new objective is a member of `Objective`, a row of `OBJECTIVES` and a module in
`finetune_trainer.train.preference`. A new type is a member of `MethodType`, a row of `TYPES`, and a case in
`finetune_trainer.train.modelsetup`.
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

Objective = Literal["SFT", "DPO", "KTO", "ORPO"]
MethodType = Literal["LoRA", "QLoRA", "Full"]
DEFAULT_OBJECTIVE: Final = "SFT"
DEFAULT_TYPE: Final = "LoRA"


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Kind of rows that an objective learns from."""

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
class ObjectiveInfo:
    """Properties of an objective."""

    rows: TrainingRows
    sequences_per_row: int = 1
    """Sequences per row in the forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeInfo:
    """Properties of a type of training."""

    checkpoint_type: CheckpointType = ADAPTER
    quantized_base: bool = False
    """Whether the base model is quantized to 4 bits."""
    lighter: MethodType | None = None
    """The type to train the same rows with in less memory, in a new run."""

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter is trained on a frozen base model. Otherwise all weights are trained."""
        return self.checkpoint_type == ADAPTER

    @property
    def sharded_by_default(self) -> bool:
        """Whether several processes shard the weights unless they are requested not to."""
        return not self.trains_adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """Properties of an objective with a type."""

    learning_rate: float
    """Default. If it `scales_with_width`, the default at a hidden size of 2,000."""
    scales_with_width: bool = False
    """Whether the default learning rate falls with the hidden size."""


OBJECTIVES: Final[Mapping[Objective, ObjectiveInfo]] = {
    "SFT": ObjectiveInfo(rows=COMPLETIONS),
    "DPO": ObjectiveInfo(rows=PAIRS, sequences_per_row=2),
    "KTO": ObjectiveInfo(rows=LABELLED, sequences_per_row=2),
    "ORPO": ObjectiveInfo(rows=PAIRS, sequences_per_row=2),
}

TYPES: Final[Mapping[MethodType, TypeInfo]] = {
    "LoRA": TypeInfo(lighter="QLoRA"),
    "QLoRA": TypeInfo(quantized_base=True),
    "Full": TypeInfo(checkpoint_type=FULL_MODEL, lighter="LoRA"),
}

# DPO and ORPO use the rates of TRL's scripts with an adapter (trl/scripts/dpo.py and
# examples/scripts/orpo.py), KTO the upper end of the range that TRL's page recommends for all weights.
METHODS: Final[Mapping[tuple[Objective, MethodType], MethodInfo]] = {
    ("SFT", "LoRA"): MethodInfo(learning_rate=5e-4, scales_with_width=True),
    ("SFT", "QLoRA"): MethodInfo(learning_rate=5e-4, scales_with_width=True),
    ("SFT", "Full"): MethodInfo(learning_rate=5e-5, scales_with_width=True),
    ("DPO", "LoRA"): MethodInfo(learning_rate=5e-6),
    ("KTO", "LoRA"): MethodInfo(learning_rate=5e-6),
    ("ORPO", "LoRA"): MethodInfo(learning_rate=8e-5),
}


def objectives_where(predicate: Callable[[ObjectiveInfo], bool]) -> tuple[Objective, ...]:
    """Objectives that meet the predicate, in the order of the table."""
    return tuple(objective for objective, info in OBJECTIVES.items() if predicate(info))


def types_where(predicate: Callable[[TypeInfo], bool]) -> tuple[MethodType, ...]:
    """Types that meet the predicate, in the order of the table."""
    return tuple(type_ for type_, info in TYPES.items() if predicate(info))


def types_of(objective: Objective) -> tuple[MethodType, ...]:
    """Types that the trainer has for an objective, in the order of the table."""
    return tuple(type_ for type_ in TYPES if (objective, type_) in METHODS)
