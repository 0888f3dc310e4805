"""Chooses between padding and packing the rows of a batch."""

import logging
from collections.abc import Sequence
from typing import Final

import torch

from finetune_trainer.tokens.batching import Collate, Padding, pack
from finetune_trainer.tokens.encode import EncodedRow
from finetune_trainer.train.modelsetup import Trainable

MAX_PACKED_TOKENS: Final = 1024
"""Attention costs the square of a packed sequence's length; above this limit padding costs less."""
MAX_RELATIVE_DIFFERENCE: Final = 0.05
"""Limit for a row's logits packed and alone: far above rounding, far below the effect of mixed rows."""

logger = logging.getLogger(__name__)


def choose_collation(
    model: Trainable, rows: Sequence[EncodedRow], batch_size: int, pad_token_id: int
) -> Collate:
    """Choose packing for batches of short rows, if the model separates packed rows; else padding.

    Packing avoids padding, which is a large part of a step with short texts. The choice draws no random
    numbers and depends on nothing that changes in training.
    """
    mean = sum(len(row.input_ids) for row in rows) / len(rows)
    if batch_size == 1 or batch_size * mean > MAX_PACKED_TOKENS:
        return Padding(pad_token_id)
    if not isolates_packed_rows(model, *_two_shortest(rows)):
        logger.info("this model does not separate packed rows: batches are padded")
        return Padding(pad_token_id)
    return pack


def isolates_packed_rows(model: Trainable, first: EncodedRow, second: EncodedRow) -> bool:
    """Whether the second row has the same logits alone and packed after the first row."""
    model.eval()
    with torch.inference_mode():
        alone = _logits(model, [second])
        packed = _logits(model, [first, second])[len(first.input_ids) :]
    return bool((packed - alone).norm() <= MAX_RELATIVE_DIFFERENCE * alone.norm())


def _logits(model: Trainable, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Logits of packed rows, of shape (tokens, vocabulary)."""
    batch = pack(rows)
    output = model(
        input_ids=batch["input_ids"].to(model.device),
        position_ids=batch["position_ids"].to(model.device),
        use_cache=False,
    )
    logits: torch.Tensor = output.logits[0].float()
    return logits


def _two_shortest(rows: Sequence[EncodedRow]) -> tuple[EncodedRow, EncodedRow]:
    shortest = sorted(rows, key=lambda row: len(row.input_ids))[:2]
    return shortest[0], shortest[-1]
