# SPDX-License-Identifier: Apache-2.0
"""The loss on completion tokens only."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune_trainer.model.head import ChunkedHead
from finetune_trainer.tokens.batching import ROW_LABELS, model_inputs
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


def row_loss_sums(
    model: torch.nn.Module, batch: Mapping[str, Tensor], head: ChunkedHead | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of each padded row in nats, and its labelled tokens.

    Both have shape (rows,). `batch` and `head` are those of `completion_loss`.
    """
    tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1)
    return segment_loss_sums(model, batch, tokens, head), tokens


def segment_loss_sums(
    model: torch.nn.Module, batch: Mapping[str, Tensor], segments: Tensor, head: ChunkedHead | None = None
) -> Tensor:
    """As `row_loss_sums`, for consecutive runs of labelled tokens, of shape (segments,).

    `segments` has the number of tokens of each.
    """
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    predicting = targets != IGNORE_INDEX
    sizes: list[int] = segments.tolist()
    # On the CPU, because the last layer can be on another device than the batch.
    inputs = {**model_inputs(batch), "use_cache": False, "logits_to_keep": predicting.cpu()}
    if head is not None:
        with head.computing_loss(targets[predicting], sizes) as sums_of:
            returned = model(**inputs).logits
        return sums_of(returned)
    logits = model(**inputs).logits
    losses = cross_entropy(logits.float(), targets[predicting], reduction="none")
    return torch.stack([part.sum() for part in torch.split(losses, sizes)])


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


def completion_losses_by_row(
    model: torch.nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    head: ChunkedHead | None,
    add: Callable[[Tensor, Tensor], None],
) -> tuple[float, int]:
    """As `total_completion_loss`, for batches with `ROW_LABELS`.

    Calls `add` for each batch with the summed loss of its rows in nats, and their labelled tokens.
    """
    model.eval()
    loss_sum = 0.0
    tokens = 0
    with torch.no_grad():
        for batch in batches:
            labels = batch[ROW_LABELS]
            losses = segment_loss_sums(model, batch, labels, head)
            add(losses, labels)
            loss_sum += float(losses.sum())
            tokens += int(labels.sum())
    return loss_sum, tokens
