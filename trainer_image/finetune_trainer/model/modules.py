"""The layers of a model that an adapter can adapt."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of all linear layers except the output head, without paths, sorted.

    The head is excluded because it often is the input embedding too, which would change with it.
    """
    return sorted({path.rpartition(".")[2] for path in _paths(model)})


def unknown_layers(model: PreTrainedModel, wanted: Iterable[str]) -> list[str]:
    """The `wanted` layer names, with or without a path, that match no linear layer except the head."""
    paths = _paths(model)
    return [layer for layer in wanted if not any(f".{path}".endswith(f".{layer}") for path in paths)]


def _paths(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
