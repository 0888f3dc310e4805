# SPDX-License-Identifier: Apache-2.0
"""Training methods: an objective, and a type that says which weights are trained, with their settings.

All other code reads their properties from `OBJECTIVES`, `TYPES` and `METHODS`. Each pair that the trainer can
train is a row of `METHODS`. A new objective is a member of `Objective`, a row of `OBJECTIVES` and a module in
`finetune_trainer.train.preference`. A new type is a member of `MethodType`, a row of `TYPES`, and a case in
`finetune_trainer.train.model_setup`. The API shares the fields of LoRA and Preference.

The table also decides which methods can shard the weights over the processes of a run, instead of a replica
in each process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract, SharedPart
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
    ("DPO", "QLoRA"): MethodInfo(learning_rate=5e-6),
    ("KTO", "LoRA"): MethodInfo(learning_rate=5e-6),
    ("KTO", "QLoRA"): MethodInfo(learning_rate=5e-6),
    ("ORPO", "LoRA"): MethodInfo(learning_rate=8e-5),
    ("ORPO", "QLoRA"): MethodInfo(learning_rate=8e-5),
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


MAX_TARGET_MODULES: Final = 32


class LoRAFields(BaseModel):
    """Settings of an adapter (Hu et al., 2021), named as in PEFT. The defaults are those of a new adapter."""

    r: Annotated[int, Field(description="Rank of the adapter.")] = 16
    alpha: Annotated[
        int, Field(description="Scaling factor of the adapter: its output is multiplied by alpha / r.")
    ] = 32
    dropout: Annotated[float, Field(description="Dropout probability on the adapter's input.")] = 0.05
    target_modules: Annotated[
        tuple[str, ...],
        Field(
            max_length=MAX_TARGET_MODULES,
            description="Names of the adapted modules. Empty: all linear layers except the output head.",
        ),
    ] = ()
    rslora: Annotated[bool, Field(description="Whether the adapter is scaled by alpha / sqrt(r).")] = False
    dora: Annotated[bool, Field(description="Whether the adapter is trained with DoRA.")] = False


class RequestedLoRAFields(BaseModel):
    """Settings of an adapter that a user may set. The trainer chooses absent ones: with a parent its value,
    else the default of `LoRAFields`."""

    r: Annotated[
        int | None,
        Field(
            ge=1,
            le=256,
            description="Rank of the adapter. Default: 16, or that of the adapter that the run continues.",
        ),
    ] = None
    alpha: Annotated[
        int | None,
        Field(
            ge=1,
            le=1024,
            description="Scaling factor of the adapter: its output is multiplied by alpha / r, or by"
            " alpha / sqrt(r) with rsLoRA. Default: 32, or that of the adapter that the run continues.",
        ),
    ] = None
    dropout: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="Dropout probability on the adapter's input. DPO, KTO and ORPO train without dropout."
            " Default: 0.05, or that of the adapter that the run continues.",
        ),
    ] = None
    target_modules: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] | None,
        Field(
            min_length=1,
            max_length=MAX_TARGET_MODULES,
            description="Names of the modules to adapt. Default: all linear layers except the output head, or"
            " those of the adapter that the run continues.",
        ),
    ] = None
    rslora: Annotated[
        bool | None,
        Field(
            description="Rank-stabilised LoRA (Kalajdzievski, 2023): scale the adapter by alpha / sqrt(r),"
            " so that a high rank learns as fast as a low one. Default: false, or as the adapter that the run"
            " continues.",
        ),
    ] = None
    dora: Annotated[
        bool | None,
        Field(
            description="DoRA (Liu et al., 2024): train the magnitude of each adapted weight separately from"
            " its direction. A step takes more time and memory. The engine VLLM does not serve such"
            " adapters. Default: false, or as the adapter that the run continues."
        ),
    ] = None


class LoRA(LoRAFields, SharedPart):
    """Adapter settings that the run uses, named as in PEFT."""


class RequestedLoRA(RequestedLoRAFields, SharedPart):
    """Adapter settings that the user set, named as in PEFT."""

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are set, by name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class PreferenceFields(BaseModel):
    """Settings of the objectives for preference data, named as in TRL."""

    beta: Annotated[
        float,
        Field(
            gt=0,
            le=10,
            description="DPO and KTO: strength of the KL regularisation towards the reference model, the"
            " model that training starts from; higher stays closer. ORPO: weight of the odds ratio term in"
            " the loss (λ in the paper), relative to the loss of the chosen answer.",
        ),
    ] = 0.1
    desirable_weight: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000,
            description="KTO: weight of rows with the label true. Default: chosen so that both labels have"
            " the same total weight.",
        ),
    ] = None
    undesirable_weight: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000,
            description="KTO: weight of rows with the label false. Default: chosen so that both labels have"
            " the same total weight.",
        ),
    ] = None


class Preference(PreferenceFields, SharedPart):
    """Settings of DPO, KTO and ORPO, named as in TRL. None: preflight chooses the value."""


class _Method(Contract):
    objective: Objective = DEFAULT_OBJECTIVE
    type: MethodType = DEFAULT_TYPE

    @property
    def label(self) -> str:
        """The method in a sentence, for example `LoRA` or `DPO with LoRA`."""
        return self.type if self.objective == DEFAULT_OBJECTIVE else f"{self.objective} with {self.type}"


class Method(_Method):
    """Training method and its settings, as the run uses them."""

    lora: LoRA = LoRA()
    """Settings of all methods that train an adapter."""
    preference: Preference = Preference()


class RequestedMethod(_Method):
    """Training method and its settings, as the user set them."""

    lora: RequestedLoRA = RequestedLoRA()
    preference: Preference = Preference()

    def resolved(self) -> Method:
        """The method with the settings that the user set, and for the rest those of a new adapter."""
        return Method(
            objective=self.objective,
            type=self.type,
            lora=LoRA(**self.lora.given),
            preference=self.preference,
        )


Sharding = Literal["Auto", "Replicated", "Sharded"]


def can_shard(method: Method) -> bool:
    """Whether processes can shard the weights of the method with these settings.

    They cannot with DoRA, because PEFT computes its magnitudes from whole weights.
    """
    return not (TYPES[method.type].trains_adapter and method.lora.dora)


def is_sharded(type_: MethodType, sharded: bool | None, processes: int) -> bool:
    """Whether a run with this hyperparameter `sharded` shards its weights; one process shards nothing."""
    if processes == 1:
        return False
    return TYPES[type_].sharded_by_default if sharded is None else sharded


def resolve_sharding(
    requested: Sharding, method: Method, processes: int, *, replica_fits: bool = True
) -> bool | None:
    """The hyperparameter `sharded` of a run; None where it is the default of the method's type.

    Args:
        requested: `compute.sharding`. Auto is the default of the method's type.
        method: the method, with the settings of the adapter that the run continues.
        processes: number of processes of the run.
        replica_fits: whether a replica is predicted to fit a device. If not, Auto shards what can be sharded.
    """
    info = TYPES[method.type]
    if requested == "Auto":
        wanted = info.sharded_by_default or (can_shard(method) and not replica_fits)
    else:
        wanted = requested == "Sharded"
    return None if processes == 1 or wanted == info.sharded_by_default else wanted
