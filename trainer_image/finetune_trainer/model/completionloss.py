"""The loss on completion tokens only."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune_trainer.model.head import ChunkedHead
from finetune_trainer.tokens.batching import model_inputs
from finetune_trainer.tokens.encode import IGNORE_INDEX


def completion_loss(
    model: torch.nn.Module, batch: Mapping[str, Tensor], head: ChunkedHead | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of the labelled tokens in nats, and their number.

    `batch` has `input_ids` and `labels` of shape (rows, tokens), and the model's other inputs. The output
    head, the most expensive layer of a small model, reads only the positions that predict a labelled token:
    with `head` a few at a time, without it all at once, as logits of shape (labelled tokens, vocabulary).
    The loss is computed in float32.
    """
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    predicting = targets != IGNORE_INDEX
    inputs = model_inputs(batch)
    if head is not None:
        with head.computing_loss(targets[predicting]) as loss_of:
            returned = model(**inputs, use_cache=False, logits_to_keep=predicting).logits
        return loss_of(returned), predicting.sum()
    logits = model(**inputs, use_cache=False, logits_to_keep=predicting).logits
    return cross_entropy(logits.float(), targets[predicting], reduction="sum"), predicting.sum()


def row_losses(model: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the labelled tokens of each padded row in nats, of shape (rows,)."""
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    needed = (targets != IGNORE_INDEX).any(dim=0)
    logits = model(**inputs, use_cache=False, logits_to_keep=needed).logits.float()
    kept = targets[:, needed]
    losses = cross_entropy(logits.transpose(1, 2), kept, ignore_index=IGNORE_INDEX, reduction="none")
    return losses.sum(dim=1) / (kept != IGNORE_INDEX).sum(dim=1)


def mean_completion_loss(
    model: torch.nn.Module, batches: Iterable[Mapping[str, Tensor]], head: ChunkedHead | None = None
) -> float:
    """Mean loss over all labelled tokens of all batches in nats, without dropout; NaN if there are none.

    Draws no random numbers. Leaves the model in evaluation mode.
    """
    loss_sum, tokens = total_completion_loss(model, batches, head)
    return loss_sum / tokens if tokens else math.nan


def total_completion_loss(
    model: torch.nn.Module, batches: Iterable[Mapping[str, Tensor]], head: ChunkedHead | None = None
) -> tuple[float, int]:
    """Summed loss of all labelled tokens of all batches in nats, without dropout, and their number.

    Draws no random numbers. Leaves the model in evaluation mode.
    """
    model.eval()
    loss_sum = 0.0
    tokens = 0
    # Not inference_mode: FSDP gathers sharded weights into tensors that training uses, too.
    with torch.no_grad():
        for batch in batches:
            batch_loss, batch_tokens = completion_loss(model, batch, head)
            loss_sum += float(batch_loss)
            tokens += int(batch_tokens)
    return loss_sum, tokens
