"""How the weights are changed: the method and its settings."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_operator.api.meta import Model, Rule


class LoRA(Model):
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
            alias="rsLoRA",
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


class Preference(Model):
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


class Method(Model):
    """How the weights are changed."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.lora) || self.type != 'Full'",
            "method.lora has no meaning with type: Full; remove it or choose type: LoRA",
            "lora",
        ),
        Rule(
            "!has(self.preference) || self.type in ['DPO', 'KTO', 'ORPO']",
            "method.preference is for rows that judge answers; remove it or choose type: DPO, KTO or ORPO",
            "preference",
        ),
        Rule(
            "!has(self.preference) || self.type == 'KTO'"
            " || !has(self.preference.desirableWeight) && !has(self.preference.undesirableWeight)",
            "desirableWeight and undesirableWeight are of KTO, whose rows are good or bad; remove them or"
            " choose type: KTO",
            "preference",
        ),
    )

    type: Annotated[
        Literal["LoRA", "QLoRA", "Full", "DPO", "KTO", "ORPO"],
        Field(
            description="What is learned, and from which rows. Prompts with completions, and chats: LoRA"
            " trains an adapter, QLoRA the same over a base model in 4 bits, Full all weights. Pairs of a"
            " chosen and a rejected answer: DPO and ORPO. Answers with a label true or false: KTO. These"
            " three train an adapter, without dropout."
        ),
    ] = "LoRA"
    lora: Annotated[
        LoRA | None,
        Field(
            description="Adapter settings; absent: the defaults. With baseModel.checkpoint what is left out,"
            " or has its default, is as in the adapter that is continued."
        ),
    ] = None
    preference: Annotated[
        Preference | None, Field(description="Settings of DPO, KTO and ORPO; absent: the defaults.")
    ] = None
