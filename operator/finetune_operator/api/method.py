# SPDX-License-Identifier: Apache-2.0
"""Training method and its settings: rules for the fields that the contract declares."""

from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_operator.api.cel import is_none_of, is_one_of
from finetune_operator.api.meta import CELRule, Model
from finetune_trainer.contract.method import LoRAFields, PreferenceFields
from finetune_trainer.contract.methods import DEFAULT_METHOD, LABELLED, MethodType, methods_where
from finetune_trainer.contract.vocabulary import listed

METHODS_WITHOUT_ADAPTER: Final = methods_where(lambda info: not info.trains_adapter)
PREFERENCE_METHODS: Final = methods_where(lambda info: info.rows.is_preference_data)
LABEL_METHODS: Final = methods_where(lambda info: info.rows is LABELLED)


def _alias(name: str) -> str:
    return "rsLoRA" if name == "rslora" else to_camel(name)


class LoRA(LoRAFields, Model):
    """Low-rank adapter settings (Hu et al., 2021), named as in PEFT."""

    model_config = ConfigDict(alias_generator=_alias, populate_by_name=True)


class Preference(PreferenceFields, Model):
    """Settings of DPO, KTO and ORPO, named as in TRL. Default: the defaults of its fields."""


class Method(Model):
    """Training method and its settings."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            f"!has(self.lora) || {is_none_of('self.type', METHODS_WITHOUT_ADAPTER)}",
            f"method.lora has no effect with type: {listed(METHODS_WITHOUT_ADAPTER, 'or')}; remove it or"
            f" choose type: {DEFAULT_METHOD}",
            "lora",
        ),
        CELRule(
            f"!has(self.preference) || {is_one_of('self.type', PREFERENCE_METHODS)}",
            "method.preference is for preference data; remove it or choose type:"
            f" {listed(PREFERENCE_METHODS, 'or')}",
            "preference",
        ),
        CELRule(
            f"!has(self.preference) || {is_one_of('self.type', LABEL_METHODS)}"
            " || !has(self.preference.desirableWeight) && !has(self.preference.undesirableWeight)",
            "preference.desirableWeight and preference.undesirableWeight weight rows with a label; remove"
            f" them or choose type: {listed(LABEL_METHODS, 'or')}",
            "preference",
        ),
    )

    type: Annotated[
        MethodType,
        Field(
            description="Training method. For prompts with completions and for chats: LoRA trains an"
            " adapter, QLoRA an adapter on a base model in 4 bits, Full all weights. For pairs of a chosen"
            " and a rejected answer: DPO and ORPO. For answers with a label true or false: KTO. DPO, ORPO"
            " and KTO train an adapter without dropout."
        ),
    ] = DEFAULT_METHOD
    lora: Annotated[
        LoRA | None,
        Field(
            description="Settings of the adapter (LoRA), named as in PEFT. Default: the defaults of its"
            " fields. With baseModel.checkpoint, fields that are absent or have their default take the"
            " values of the adapter that training continues."
        ),
    ] = None
    preference: Preference | None = None
