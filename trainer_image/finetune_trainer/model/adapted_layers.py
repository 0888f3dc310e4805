# SPDX-License-Identifier: Apache-2.0
"""The layers of a model that an adapter adapts, and the weights that it leaves out.

An adapter adapts the linear layers of the text decoder. Left out are:

- the output head, which often is the input embedding too and would change with it;
- encoders of images or audio, which get no gradient from text;
- layers that are not called as linear layers: the projections of Mamba's mixers whose weights a fused kernel
  reads, and the routers of mixtures of experts that return several tensors;
- experts that are stored as one parameter for all of them, and layers that PEFT takes for experts by their
  name: its adapters of such parameters allow no dropout.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

KERNEL_LAYERS: Final = ("dt_proj", "out_proj")
"""Layers of a Mamba mixer whose weights its kernel reads. PEFT refuses `out_proj` for the same reason."""
EXPERT_DIMENSIONS: Final = 3
"""Dimensions of a parameter with the weights of all experts: experts, outputs, inputs."""


def unwrap_base_model(model: Any) -> PreTrainedModel:
    """The model itself, or the base model of an adapted one."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of all layers that an adapter can adapt, without paths, sorted."""
    return sorted({_name(path) for path in _adaptable(model)})


def unknown_layers(model: PreTrainedModel, wanted: Iterable[str]) -> list[str]:
    """The `wanted` layer names, with or without a path, that match no layer that an adapter can adapt."""
    paths = _adaptable(model)
    return [layer for layer in wanted if not any(f".{path}".endswith(f".{layer}") for path in paths)]


def excluded_layers(model: PreTrainedModel, targets: Iterable[str]) -> str | None:
    """A regular expression of the paths with a target's name that cannot be adapted; None if there are none.

    In the form of `exclude_modules` of PEFT's LoraConfig.
    """
    adaptable, names = set(_adaptable(model)), set(map(_name, targets))
    excluded = {
        re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(path))
        for path, module in model.named_modules()
        if _name(path) in names and path not in adaptable and isinstance(module, nn.Linear | Conv1D)
    }
    return "|".join(sorted(excluded)) or None


def freeze_encoders(model: PreTrainedModel) -> None:
    """Freeze all parameters except those of the text decoder and of the output head."""
    trained = {id(parameter) for part in (_decoder(model), _head(model)) for parameter in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


@dataclass(frozen=True, slots=True)
class Experts:
    """Experts of a model that no adapter adapts."""

    names: tuple[str, ...]
    """Names of their parameters, without paths, sorted."""
    share: float
    """Their share of all parameters of the model."""


def stacked_experts(model: PreTrainedModel) -> Experts | None:
    """The experts that are stored as one parameter for all of them; None if there are none."""
    found: list[tuple[str, Tensor]] = [
        (_name(path), parameter)
        for path, parameter in _decoder(model).named_parameters()
        if parameter.dim() == EXPERT_DIMENSIONS and "experts" in path.split(".")
    ]
    if not found:
        return None
    total = sum(parameter.numel() for parameter in model.parameters())
    return Experts(
        tuple(sorted({name for name, _ in found})), sum(parameter.numel() for _, parameter in found) / total
    )


def _adaptable(model: PreTrainedModel) -> list[str]:
    """Paths of the layers that an adapter can adapt."""
    head, inside = _head(model), {id(module) for module in _decoder(model).modules()}
    kernels = {
        id(layer)
        for mixer in model.modules()
        if hasattr(mixer, "A_log") and hasattr(mixer, "D")
        for name, layer in mixer.named_children()
        if name in KERNEL_LAYERS
    }
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and id(module) in inside
        and id(module) not in kernels
        and not type(module).__name__.endswith("Router")
    ]
    taken = {name for name in set(map(_name, paths)) if _is_taken_for_an_expert(name, model)}
    return [path for path in paths if _name(path) not in taken]


def _is_taken_for_an_expert(name: str, model: PreTrainedModel) -> bool:
    """Whether PEFT reads a target of this name as the experts, which were linear layers in transformers 4."""
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it is one of several names of one parameter
        return True
    return name not in (config.target_modules or ())


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return decoder


def _head(model: PreTrainedModel) -> nn.Module:
    """The output head; an empty module for a model without one."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head or nn.Identity()


def _name(path: str) -> str:
    return path.rpartition(".")[2]
