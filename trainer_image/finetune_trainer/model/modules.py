"""The layers of a model that an adapter can be put on."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of all linear layers but the output head, each without its path, sorted.

    The head is left out because it often is the input embedding too, which then would change with it.
    """
    return sorted({path.rpartition(".")[2] for path in _paths(model)})


def unknown_layers(model: PreTrainedModel, wanted: Iterable[str]) -> list[str]:
    """Those of the wanted layer names, with or without a path, that no linear layer but the head has."""
    paths = _paths(model)
    return [layer for layer in wanted if not any(f".{path}".endswith(f".{layer}") for path in paths)]


def _paths(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
