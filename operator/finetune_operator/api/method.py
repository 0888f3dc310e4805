# SPDX-License-Identifier: Apache-2.0
"""Training method and its settings: rules for the fields that the contract declares."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from finetune_operator.api.cel import is_none_of, is_one_of
from finetune_operator.api.meta import CELRule, Model
from finetune_trainer.contract.method import (
    DEFAULT_OBJECTIVE,
    DEFAULT_TYPE,
    LABELLED,
    OBJECTIVES,
    TYPES,
    LoRAFields,
    MethodType,
    Objective,
    PreferenceFields,
    RequestedLoRAFields,
    objectives_where,
    types_of,
    types_where,
)
from finetune_trainer.contract.vocabulary import listed

TYPES_WITHOUT_ADAPTER: Final = types_where(lambda info: not info.trains_adapter)
PREFERENCE_OBJECTIVES: Final = objectives_where(lambda info: info.rows.is_preference_data)
LABEL_OBJECTIVES: Final = objectives_where(lambda info: info.rows is LABELLED)

WORD: Final = WithJsonSchema({"type": "string", "maxLength": 16})
"""Schema of a string that a rule of its type checks. An enum would hide the sentences of all rules."""


def _alias(name: str) -> str:
    return "rsLoRA" if name == "rslora" else to_camel(name)


class LoRA(RequestedLoRAFields, Model):
    """Low-rank adapter settings (Hu et al., 2021), named as in PEFT."""

    model_config = ConfigDict(alias_generator=_alias, populate_by_name=True)


class ResolvedLoRA(LoRAFields, Model):
    """Settings of the adapter that the run trains."""

    model_config = ConfigDict(alias_generator=_alias, populate_by_name=True)


class Preference(PreferenceFields, Model):
    """Settings of DPO, KTO and ORPO, named as in TRL. Default: the defaults of its fields."""


def _rules_of_words() -> Iterator[CELRule]:
    """One rule per word in the wrong field, and one per field for all other words."""
    types, objectives = listed(tuple(TYPES), "or"), listed(tuple(OBJECTIVES), "or")
    for word in OBJECTIVES:
        yield CELRule(
            f"self.type != '{word}'",
            f"{word} is an objective: set method.objective: {word}; method.type is {types}",
            "type",
        )
    for name in TYPES:
        yield CELRule(
            f"self.objective != '{name}'",
            f"{name} is a type: set method.type: {name}; method.objective is {objectives}",
            "objective",
        )
    yield CELRule(
        is_one_of("self.type", (*TYPES, *OBJECTIVES)), f"method.type is {types}: choose one of them", "type"
    )
    yield CELRule(
        is_one_of("self.objective", (*OBJECTIVES, *TYPES)),
        f"method.objective is {objectives}: choose one of them",
        "objective",
    )


def _rules_of_pairs() -> Iterator[CELRule]:
    """One rule per objective that the trainer does not have with every type."""
    for objective in OBJECTIVES:
        absent = tuple(type_ for type_ in TYPES if type_ not in types_of(objective))
        if absent:
            yield CELRule(
                f"self.objective != '{objective}' || {is_none_of('self.type', absent)}",
                f"method.objective: {objective} with method.type {listed(absent, 'or')} is not in this"
                f" release: set method.type: {listed(types_of(objective), 'or')}",
                "type",
            )


class Method(Model):
    """Training method and its settings."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *_rules_of_words(),
        *_rules_of_pairs(),
        CELRule(
            f"!has(self.lora) || {is_none_of('self.type', TYPES_WITHOUT_ADAPTER)}",
            f"method.lora has no effect with type: {listed(TYPES_WITHOUT_ADAPTER, 'or')}; remove it or"
            f" choose type: {DEFAULT_TYPE}",
            "lora",
        ),
        CELRule(
            f"!has(self.preference) || {is_one_of('self.objective', PREFERENCE_OBJECTIVES)}",
            "method.preference is for preference data; remove it or choose objective:"
            f" {listed(PREFERENCE_OBJECTIVES, 'or')}",
            "preference",
        ),
        CELRule(
            f"!has(self.preference) || {is_one_of('self.objective', LABEL_OBJECTIVES)}"
            " || !has(self.preference.desirableWeight) && !has(self.preference.undesirableWeight)",
            "preference.desirableWeight and preference.undesirableWeight weight rows with a label; remove"
            f" them or choose objective: {listed(LABEL_OBJECTIVES, 'or')}",
            "preference",
        ),
    )

    objective: Annotated[
        Objective,
        WORD,
        Field(
            description="What the model learns from the rows. SFT: completions of prompts, and answers of"
            " chats. DPO, ORPO: to prefer the chosen answer to the rejected one. KTO: to prefer answers with"
            " the label true. DPO, ORPO and KTO need type: LoRA in this release."
        ),
    ] = DEFAULT_OBJECTIVE
    type: Annotated[
        MethodType,
        WORD,
        Field(
            description="Weights that are trained. LoRA: an adapter. QLoRA: an adapter on a base model in 4"
            " bits. Full: all weights."
        ),
    ] = DEFAULT_TYPE
    lora: Annotated[
        LoRA | None,
        Field(
            description="Settings of the adapter, named as in PEFT. A run that continues an adapter cannot"
            " change them, except dropout. status.resolved.lora records what was chosen. Default: the"
            " defaults of its fields."
        ),
    ] = None
    preference: Preference | None = None


class MethodRecord(Model):
    """Training method of a run."""

    objective: Annotated[Objective, Field(description="What the model learned from the rows.")]
    type: Annotated[MethodType, Field(description="Weights that were trained.")]
