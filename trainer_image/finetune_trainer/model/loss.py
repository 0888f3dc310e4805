"""The loss on completion tokens only."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune_trainer.model.encode import IGNORED


def completion_loss(model: torch.nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the labelled tokens in nats: its sum, and how many tokens these are.

    `batch` has `input_ids` and `labels` of shape (rows, tokens), and the model's other inputs. The output
    head, the costliest layer of a small model, reads only the positions that predict a labelled token, so
    logits have the shape (labelled tokens, vocabulary). The loss is computed in float32.
    """
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    predicting = targets != IGNORED
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False, logits_to_keep=predicting).logits
    return cross_entropy(logits.float(), targets[predicting], reduction="sum"), predicting.sum()


def mean_completion_loss(model: torch.nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Mean over all labelled tokens of all batches in nats, without dropout; NaN where there are none.

    Draws no random numbers. Leaves the model in evaluation mode.
    """
    nats, tokens = total_completion_loss(model, batches)
    return nats / tokens if tokens else math.nan


def total_completion_loss(
    model: torch.nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> tuple[float, int]:
    """Summed loss in nats of all labelled tokens of all batches, without dropout, and how many these are.

    Draws no random numbers. Leaves the model in evaluation mode.
    """
    model.eval()
    nats = 0.0
    tokens = 0
    with torch.inference_mode():
        for batch in batches:
            batch_nats, batch_tokens = completion_loss(model, batch)
            nats += float(batch_nats)
            tokens += int(batch_tokens)
    return nats, tokens
