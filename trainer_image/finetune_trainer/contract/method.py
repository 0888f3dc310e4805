# SPDX-License-Identifier: Apache-2.0
"""Training method and its settings. The API shares the fields of LoRA and Preference."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract, SharedPart
from finetune_trainer.contract.methods import DEFAULT_OBJECTIVE, DEFAULT_TYPE, MethodType, Objective

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
