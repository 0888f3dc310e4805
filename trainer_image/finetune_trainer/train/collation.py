# SPDX-License-Identifier: Apache-2.0
"""Tests a model: how rows share a batch, packed into one sequence or padded, and how its head is computed."""

import functools
import logging
from collections.abc import Sequence
from typing import Any, Final

import torch

from finetune_trainer.model.attention import (
    REPLACED,
    VARLEN,
    check_gradients,
    disable_varlen,
    get_attention,
    recorded_shapes,
    set_attention,
)
from finetune_trainer.model.completion_loss import ChunkedHead, chunked_head
from finetune_trainer.model.device import is_out_of_memory, mixed_precision
from finetune_trainer.tokens.batching import (
    Collate,
    Padding,
    TokenBudget,
    model_inputs,
    pack,
    pack_with_bounds,
    pad_without_mask,
    row_lengths,
)
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow
from finetune_trainer.train.model_setup import Trainable

MAX_PACKED_TOKENS: Final = 1024
"""Attention with a mask costs the square of a packed sequence; above this limit padding costs less."""
PROBE_TOKENS: Final = (7, 9)
"""Lengths of the two rows of random tokens that test whether packed rows are separated."""
MAX_DIVERGENCE_SHARE: Final = 0.05
"""Limit for the effect of an earlier packed row, relative to that of the same tokens in one row. Rounding in
bfloat16 is far below it."""

logger = logging.getLogger(__name__)


def choose_collation(
    model: Trainable, rows: Sequence[EncodedRow], batch_size: int, pad_token_id: int
) -> Collate:
    """Choose packing for batches of short rows, if the model separates packed rows; else padding.

    Packing avoids padding, which is a large part of a step with short texts. The choice draws no random
    numbers and depends on nothing that changes in training.
    """
    mean = sum(map(int, row_lengths(rows))) / len(rows)
    if batch_size == 1 or batch_size * mean > MAX_PACKED_TOKENS or model.device.type == "meta":
        return Padding(pad_token_id)
    if not isolates_packed_rows(model):
        logger.info("this model does not separate packed rows: batches are padded")
        return Padding(pad_token_id)
    return pack


def choose_budget(model: Trainable, max_tokens: int, pad_token_id: int, device: torch.device) -> TokenBudget:
    """Choose how batches of at most `max_tokens` tokens are made on `device`.

    - On a GPU with varlen attention rows are packed, because its cost depends on the rows alone. The model is
      switched to it.
    - On a CPU rows are packed into short sequences, because attention computes a mask over all of a sequence.
    - Otherwise rows of similar length are padded, without a mask.

    The choice draws no random numbers and depends on nothing that changes in training.
    """
    padded = TokenBudget(
        max_tokens, functools.partial(pad_without_mask, pad_token_id=pad_token_id), packs=False
    )
    if device.type == "cuda":
        chosen = TokenBudget(max_tokens, pack_with_bounds, packs=True) if pack_by_varlen(model) else padded
    elif isolates_packed_rows(model):
        chosen = TokenBudget(min(max_tokens, MAX_PACKED_TOKENS), pack, packs=True)
    else:
        chosen = padded
    logger.info(
        "batches of up to %d tokens: rows are %s",
        chosen.max_tokens,
        "packed" if chosen.packs else "padded to rows of similar length",
    )
    return chosen


def isolates_packed_rows(model: Trainable, collate: Collate = pack) -> bool:
    """Whether the model separates packed rows, tested with two rows of random tokens.

    The predictions for the second row must be much closer to those for the row alone than to those for both
    rows as one. They are compared by the Kullback-Leibler divergence, because logits share a constant that
    hides differences.
    """
    first, second = _probe_rows(model)
    joined = EncodedRow(first.input_ids + second.input_ids, first.labels + second.labels)
    model.eval()
    # Not inference_mode: FSDP gathers sharded weights into tensors that training uses, too.
    with torch.no_grad(), mixed_precision(model.device):
        alone, packed, mixed = (
            _log_probabilities(model, collate(rows))[-len(second.input_ids) :]
            for rows in ([second], [first, second], [joined])
        )
    return bool(_divergence(packed, alone) <= MAX_DIVERGENCE_SHARE * _divergence(mixed, alone))


def pack_by_varlen(model: Trainable) -> bool:
    """Switch the model to varlen attention if it separates packed rows; else leave it unchanged."""
    before = get_attention(model)
    if before != REPLACED:
        return False
    set_attention(model, VARLEN)
    try:
        with recorded_shapes() as shapes:
            is_isolated = isolates_packed_rows(model, pack_with_bounds)
        if is_isolated:
            for shape in shapes:
                check_gradients(shape, model.device)
            return True
        problem = "it does not separate packed rows"
    except (RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        problem = str(error).partition("\n")[0]
    set_attention(model, before)
    logger.info("varlen attention cannot be used for this model: %s", problem)
    return False


def _divergence(predicted: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Mean Kullback-Leibler divergence of log-probabilities of shape (tokens, vocabulary)."""
    return torch.nn.functional.kl_div(predicted, expected, reduction="batchmean", log_target=True)


def _probe_rows(model: Trainable) -> tuple[EncodedRow, EncodedRow]:
    vocabulary: int = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randint(vocabulary, (tokens,), generator=generator).tolist() for tokens in PROBE_TOKENS
    )
    return _unlabelled(first), _unlabelled(second)


def _unlabelled(tokens: list[int]) -> EncodedRow:
    return EncodedRow(tokens, [IGNORE_INDEX] * len(tokens))


def _log_probabilities(model: Trainable, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of the next tokens of packed rows, of shape (tokens, vocabulary)."""
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    logits: torch.Tensor = model(**inputs, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def probe_head(model: Trainable, rows: Sequence[EncodedRow]) -> ChunkedHead | None:
    """Return the output head, after a test on the shortest row; None if it cannot be chunked."""
    lengths = row_lengths(rows)
    shortest = pack([rows[min(range(len(rows)), key=lengths.__getitem__)]])
    device = torch.device("cpu") if model.device.type == "meta" else model.device
    inputs = {name: value.to(device) for name, value in model_inputs(shortest).items()}
    with mixed_precision(device), disable_varlen(model):
        return chunked_head(model, inputs)
