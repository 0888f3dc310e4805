"""How the weights are changed."""

from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.methods import DEFAULT_METHOD, MethodType


class LoRA(Contract):
    """Adapter settings, named as in PEFT."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ()
    rslora: bool = False
    """Scaled by alpha / sqrt(r) instead of alpha / r."""
    dora: bool = False
    """The adapted weights' magnitudes are trained beside their direction."""


class Preference(Contract):
    """Settings of DPO, KTO and ORPO, named as in TRL; None: chosen."""

    beta: float = 0.1
    """How strongly the model is held near the reference; in ORPO the weight of the odds ratio, its λ."""
    desirable_weight: float | None = None
    """KTO: weight of the loss of rows whose label is true."""
    undesirable_weight: float | None = None
    """KTO: weight of the loss of rows whose label is false."""


class Method(Contract):
    """How the weights are changed."""

    type: MethodType = DEFAULT_METHOD
    lora: LoRA = LoRA()
    """Of every method but Full: all others train an adapter."""
    preference: Preference = Preference()
