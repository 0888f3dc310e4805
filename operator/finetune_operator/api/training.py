# SPDX-License-Identifier: Apache-2.0
"""How a run trains: chat template arguments, hyperparameters, method and adapter, learning curve.

The contract declares the fields of hyperparameters and method. Values of chat template arguments are JSON
scalars. A structural schema cannot express them, so the operator checks them.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema
from pydantic.alias_generators import to_camel

from finetune_operator.api.meta import CELRule, Model, is_none_of, is_one_of
from finetune_trainer.contract.hyperparameters import (
    MAX_WARMUP_RATIO,
    HyperparameterFields,
    ResolvedHyperparameterFields,
)
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
from finetune_trainer.contract.results import LearningCurvePointFields
from finetune_trainer.contract.vocabulary import RESERVED_TEMPLATE_ARGUMENTS, join_names

MAX_ARGUMENTS: Final = 16
MAX_CHARACTERS: Final = 1024
"""Max length of all arguments as JSON text."""

ChatTemplateKwargs = Annotated[
    dict[str, JsonValue],
    Field(max_length=MAX_ARGUMENTS, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}),
]
"""The API server bounds only their number. `invalid_arguments` checks the rest."""


def invalid_arguments(arguments: Mapping[str, JsonValue], field: str) -> str | None:
    """What is wrong with the arguments in this field; None if they are valid."""
    for name, value in arguments.items():
        if name in RESERVED_TEMPLATE_ARGUMENTS:
            return f"{field}.{name} is set by the trainer itself: create a new FineTuneJob without it"
        if not isinstance(value, str | int | float | bool):
            return (
                f"{field}.{name} must be a string, a number or a boolean, such as enable_thinking: false, not"
                f" {json.dumps(value)[:60]}: create a new FineTuneJob with such a value"
            )
    length = len(json.dumps(arguments, separators=(",", ":")))
    if length > MAX_CHARACTERS:
        return (
            f"{field} has {length} characters as JSON, more than {MAX_CHARACTERS}: create a new FineTuneJob"
            " with fewer or shorter values"
        )
    return None


class Hyperparameters(HyperparameterFields, Model):
    """Hyperparameters of the run. Preflight chooses absent fields once, by the rules in docs/training.md, and
    records them in status.resolved.hyperparameters."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            f"!has(self.warmupRatio) || self.warmupRatio <= {MAX_WARMUP_RATIO}",
            f"warmupRatio is a share of the run's steps and at most {MAX_WARMUP_RATIO}: write 0.03 for 3 %",
            "warmupRatio",
        ),
    )


class ResolvedHyperparameters(ResolvedHyperparameterFields, Model):
    """Hyperparameters that the run uses."""


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


def _build_word_rules() -> Iterator[CELRule]:
    """One rule per word in the wrong field, and one per field for all other words."""
    types, objectives = join_names(tuple(TYPES), "or"), join_names(tuple(OBJECTIVES), "or")
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


def _build_pair_rules() -> Iterator[CELRule]:
    """One rule per objective that the trainer does not have with every type."""
    for objective in OBJECTIVES:
        absent = tuple(type_ for type_ in TYPES if type_ not in types_of(objective))
        if absent:
            yield CELRule(
                f"self.objective != '{objective}' || {is_none_of('self.type', absent)}",
                f"method.objective: {objective} with method.type {join_names(absent, 'or')} is not in this"
                f" release: set method.type: {join_names(types_of(objective), 'or')}",
                "type",
            )


class Method(Model):
    """Training method and its settings."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *_build_word_rules(),
        *_build_pair_rules(),
        CELRule(
            f"!has(self.lora) || {is_none_of('self.type', TYPES_WITHOUT_ADAPTER)}",
            f"method.lora has no effect with type: {join_names(TYPES_WITHOUT_ADAPTER, 'or')}; remove it or"
            f" choose type: {DEFAULT_TYPE}",
            "lora",
        ),
        CELRule(
            f"!has(self.preference) || {is_one_of('self.objective', PREFERENCE_OBJECTIVES)}",
            "method.preference is for preference data; remove it or choose objective:"
            f" {join_names(PREFERENCE_OBJECTIVES, 'or')}",
            "preference",
        ),
        CELRule(
            f"!has(self.preference) || {is_one_of('self.objective', LABEL_OBJECTIVES)}"
            " || !has(self.preference.desirableWeight) && !has(self.preference.undesirableWeight)",
            "preference.desirableWeight and preference.undesirableWeight weight rows with a label; remove"
            f" them or choose objective: {join_names(LABEL_OBJECTIVES, 'or')}",
            "preference",
        ),
    )

    objective: Annotated[
        Objective,
        WORD,
        Field(
            description="What the model learns from the rows. SFT: completions of prompts, and answers of"
            " chats. DPO, ORPO: to prefer the chosen answer to the rejected one. KTO: to prefer answers with"
            " the label true. DPO, ORPO and KTO need type: LoRA or QLoRA in this release."
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


MAX_SHARES: Final = 5
"""Max number of shares of a learning curve."""


class RequestedLearningCurve(Model):
    """Trainings on shares of the rows, after the run itself."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.shares.exists(share, share < 1.0)",
            "learningCurve.shares needs a share below 1, because the run itself is always its last point: add"
            " one, such as 0.5, or remove learningCurve",
            "shares",
        ),
        CELRule(
            "self.shares.all(one, self.shares.exists_one(other, other == one))",
            "learningCurve.shares names a share twice: name each share once",
            "shares",
        ),
    )

    shares: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...],
        Field(
            min_length=1,
            max_length=MAX_SHARES,
            description="Shares of the training rows, such as [0.25, 0.5], on which the train stage trains"
            " again after the run itself, with the same settings and epochs. The rows of a smaller share are"
            " contained in a larger one. The whole run is always the last point, with or without 1 in the"
            " list. Results are in status.training.learningCurve and on the training page. It takes that"
            " share of the training time for each, needs validation rows, and makes no Checkpoints.",
        ),
    ]

    @property
    def extra_shares(self) -> tuple[float, ...]:
        """Shares to train on in addition to the run itself, the smallest first."""
        return tuple(sorted(share for share in self.shares if share < 1))


class LearningCurvePoint(LearningCurvePointFields, Model):
    """A training on a share of the rows. Losses are in the unit of status.training."""


class LearningCurve(Model):
    """Losses of trainings on nested shares of the rows, and what they say about more rows."""

    points: Annotated[
        tuple[LearningCurvePoint, ...],
        Field(
            max_length=MAX_SHARES + 1,
            description="Points by increasing share. The last one is the run itself.",
        ),
    ] = ()
    outlook: Annotated[
        str,
        Field(
            max_length=32,
            description="LikelyToHelp: the loss still falls as the rows grow, so more rows of this kind are"
            " likely to help. NotLikelyToHelp: doubling the rows lowers the loss by less than 2 %. Unknown:"
            " the intervals do not decide it.",
        ),
    ] = "Unknown"
    validation_rows: Annotated[
        int, Field(description="Number of validation rows that each loss was measured on.")
    ] = 0
    seconds: Annotated[
        float, Field(description="Seconds of the trainings except the run itself, with repeated work.")
    ] = 0
