"""From encoded rows to tensors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune_trainer.tokens.encode import IGNORE_INDEX, EncodedRow

Collate = Callable[[Sequence[EncodedRow]], dict[str, Tensor]]


class Padding:
    """Pads the rows of a batch on the right, which leaves each token where it is in its row."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels`, each of shape (rows, longest row)."""
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
    """The rows of a batch one after the other: `input_ids`, `position_ids` and `labels` of shape (1, tokens).

    Positions begin anew with each row; transformers' attention keeps rows apart by them, as long as there is
    no attention mask and no cache. What would be predicted across the border of two rows is not learned.
    """
    labels = [label for row in rows for label in (IGNORE_INDEX, *row.labels[1:])]
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row.input_ids]]),
        "position_ids": torch.tensor([[at for row in rows for at in range(len(row.input_ids))]]),
        "labels": torch.tensor([labels]),
    }


def token_count(batch: dict[str, Tensor]) -> Tensor:
    """Tokens of a batch, padding not counted."""
    mask = batch.get("attention_mask")
    return torch.tensor(batch["input_ids"].numel()) if mask is None else mask.sum()


def pad_left(prompts: Sequence[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of shape (prompts, longest prompt), padded on the left."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_token_id)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        input_ids[index, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[index, width - len(prompt) :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
