"""How the weights are changed. The API has the fields of LoRA and Preference too."""

from typing import Annotated

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract, SharedPart
from finetune_trainer.contract.methods import DEFAULT_METHOD, MethodType


class LoRAFields(BaseModel):
    """Low-rank adapter settings (Hu et al., 2021), named as in PEFT."""

    r: Annotated[int, Field(ge=1, le=256, description="Rank.")] = 16
    alpha: Annotated[
        int,
        Field(ge=1, le=1024, description="Scaling; the adapter is scaled by alpha / r; see rsLoRA."),
    ] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the adapter's input.")] = 0.05
    target_modules: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
        Field(
            max_length=32, description="Module names to adapt; empty: all linear layers but the output head."
        ),
    ] = ()
    rslora: Annotated[
        bool,
        Field(
            description="Rank-stabilised LoRA (Kalajdzievski, 2023): the adapter is scaled by"
            " alpha / sqrt(r), so that a high rank learns as fast as a low one.",
        ),
    ] = False
    dora: Annotated[
        bool,
        Field(
            description="DoRA (Liu et al., 2024): the magnitude of each adapted weight is trained beside its"
            " direction. A step takes longer and more memory; the engine VLLM does not serve such adapters."
        ),
    ] = False


class LoRA(LoRAFields, SharedPart):
    """Adapter settings, named as in PEFT."""


class PreferenceFields(BaseModel):
    """Settings of the methods that learn from judged answers, named as in TRL."""

    beta: Annotated[
        float,
        Field(
            gt=0,
            le=10,
            description="DPO and KTO: how strongly the model is held near the one that training begins from;"
            " the smaller, the further it may move. ORPO: weight of the odds ratio beside the loss of the"
            " chosen answer, its λ.",
        ),
    ] = 0.1
    desirable_weight: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000,
            description="KTO: weight of the rows whose label is true; absent: chosen, so that both kinds of"
            " rows count the same.",
        ),
    ] = None
    undesirable_weight: Annotated[
        float | None,
        Field(gt=0, le=1000, description="KTO: weight of the rows whose label is false; absent: chosen."),
    ] = None


class Preference(PreferenceFields, SharedPart):
    """Settings of DPO, KTO and ORPO, named as in TRL; None: chosen."""


class Method(Contract):
    """How the weights are changed."""

    type: MethodType = DEFAULT_METHOD
    lora: LoRA = LoRA()
    """Of every method that trains an adapter."""
    preference: Preference = Preference()
