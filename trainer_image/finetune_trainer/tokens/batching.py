"""Collate encoded rows to tensors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune_trainer.tokens.encode import IGNORE_INDEX, EncodedRow

Collate = Callable[[Sequence[EncodedRow]], dict[str, Tensor]]


class Padding:
    """Pads the rows of a batch on the right, so each token keeps its position in its row."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, of shape (rows, tokens of the longest row)."""
        width = max(len(row.input_ids) for row in rows)
        input_ids = torch.full((len(rows), width), self._pad_token_id)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORE_INDEX)
        for index, row in enumerate(rows):
            length = len(row.input_ids)
            input_ids[index, :length] = torch.tensor(row.input_ids)
            attention_mask[index, :length] = 1
            labels[index, :length] = torch.tensor(row.labels)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def pack(rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
    """Concatenate the rows of a batch: `input_ids`, `position_ids` and `labels`, each of shape (1, tokens).

    Positions restart at 0 with each row. transformers' attention separates the rows by them, provided that
    there is no attention mask and no cache. The first token of a row has no label, because it would be
    predicted from the row before.
    """
    labels = [label for row in rows for label in (IGNORE_INDEX, *row.labels[1:])]
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row.input_ids]]),
        "position_ids": torch.tensor([[position for row in rows for position in range(len(row.input_ids))]]),
        "labels": torch.tensor([labels]),
    }


def token_count(batch: dict[str, Tensor]) -> Tensor:
    """Number of tokens of a batch, without padding."""
    mask = batch.get("attention_mask")
    return torch.tensor(batch["input_ids"].numel()) if mask is None else mask.sum()


def pad_left(prompts: Sequence[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Pad on the left: `input_ids` and `attention_mask`, each of shape (prompts, tokens of the longest)."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_token_id)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        input_ids[index, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[index, width - len(prompt) :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
