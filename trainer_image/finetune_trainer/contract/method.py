# SPDX-License-Identifier: Apache-2.0
"""Training method and its settings. The API shares the fields of LoRA and Preference."""

from typing import Annotated

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract, SharedPart
from finetune_trainer.contract.methods import DEFAULT_METHOD, MethodType


class LoRAFields(BaseModel):
    """Low-rank adapter settings (Hu et al., 2021), named as in PEFT."""

    r: Annotated[int, Field(ge=1, le=256, description="Rank of the adapter.")] = 16
    alpha: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Scaling factor of the adapter: its output is multiplied by alpha / r, or by"
            " alpha / sqrt(r) with rsLoRA.",
        ),
    ] = 32
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="Dropout probability on the adapter's input.")
    ] = 0.05
    target_modules: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
        Field(
            max_length=32,
            description="Names of the modules to adapt. Default: all linear layers except the output head.",
        ),
    ] = ()
    rslora: Annotated[
        bool,
        Field(
            description="Rank-stabilised LoRA (Kalajdzievski, 2023): scale the adapter by alpha / sqrt(r),"
            " so that a high rank learns as fast as a low one.",
        ),
    ] = False
    dora: Annotated[
        bool,
        Field(
            description="DoRA (Liu et al., 2024): train the magnitude of each adapted weight separately from"
            " its direction. A step takes more time and memory. The engine VLLM does not serve such"
            " adapters."
        ),
    ] = False


class LoRA(LoRAFields, SharedPart):
    """Adapter settings, named as in PEFT."""


class PreferenceFields(BaseModel):
    """Settings of the methods for preference data, named as in TRL."""

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


class Method(Contract):
    """Training method and its settings."""

    type: MethodType = DEFAULT_METHOD
    lora: LoRA = LoRA()
    """Settings of all methods that train an adapter."""
    preference: Preference = Preference()
