# SPDX-License-Identifier: Apache-2.0
"""Split rows into batches, and collate encoded rows to tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any, Final

import torch
from torch import Tensor

from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedAnswers, EncodedRow

Collate = Callable[[Sequence[EncodedRow]], dict[str, Any]]

NUM_TOKENS: Final = "num_tokens"
"""Key of a batch for its number of tokens without padding, where its other tensors do not show it."""
ROW_LABELS: Final = "row_labels"
"""Key of a held-out batch for the number of labelled tokens of each of its rows, of shape (rows,)."""


@dataclass(frozen=True)
class TokenBudget:
    """How the rows of an optimizer step become batches of at most `max_tokens` tokens, with padding.

    A longer row is a batch of its own.
    """

    max_tokens: int
    collate: Collate
    packs: bool
    """Whether the rows of a batch form one sequence; otherwise each is padded to the longest."""

    def split(self, lengths: Sequence[int], processes: int = 1) -> list[list[int]]:
        """The batches, as indices of rows with these lengths; largest first, so memory runs out early.

        There is one for each of the processes if there are enough rows.
        """
        divide = divide_evenly if self.packs else group_by_length
        batches = divide(lengths, self.max_tokens, processes)
        return sorted(batches, key=lambda rows: self._cost([lengths[row] for row in rows]), reverse=True)

    def _cost(self, lengths: Sequence[int]) -> int:
        """Tokens that the device computes for a batch."""
        return sum(lengths) if self.packs else max(lengths) * len(lengths)


def divide_evenly(lengths: Sequence[int], max_tokens: int, processes: int = 1) -> list[list[int]]:
    """Divide rows into few bins with about equally many tokens, at most `max_tokens`.

    Each row, longest first, goes to the emptiest bin (R. L. Graham, "Bounds on multiprocessing timing
    anomalies", 1969). The number of bins is a multiple of `processes`, unless there are fewer rows.
    """
    wanted = max(1, -(-sum(lengths) // (max_tokens * processes))) * processes
    order = longest_first(lengths)
    while True:
        bins: list[list[int]] = [[] for _ in range(min(wanted, len(lengths)))]
        sizes = [(0, number) for number in range(len(bins))]
        for row in order:
            tokens, number = sizes[0]
            heapreplace(sizes, (tokens + lengths[row], number))
            bins[number].append(row)
        if all(tokens <= max_tokens or len(bins[number]) == 1 for tokens, number in sizes):
            return bins
        wanted += processes


def group_by_length(lengths: Sequence[int], max_tokens: int, processes: int = 1) -> list[list[int]]:
    """Group rows of similar length, so that each group padded to its longest row has at most `max_tokens`.

    A group has at most the share of rows of one of the processes.
    """
    max_rows = -(-len(lengths) // processes)
    groups: list[list[int]] = []
    for row in longest_first(lengths):
        rows = len(groups[-1]) + 1 if groups else 0
        if groups and rows <= max_rows and rows * lengths[groups[-1][0]] <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def row_lengths(rows: Sequence[EncodedRow] | Sequence[EncodedAnswers]) -> Sequence[int]:
    """The number of tokens of each row, without reading rows that know their lengths."""
    known: Sequence[int] | None = getattr(rows, "lengths", None)
    return [row.num_tokens for row in rows] if known is None else known


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices sorted by length, equal ones in their order."""
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


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


def pad_without_mask(rows: Sequence[EncodedRow], pad_token_id: int) -> dict[str, Tensor]:
    """Pad rows on the right, without a mask: `input_ids`, `labels` and `NUM_TOKENS`.

    A causal model computes each token from earlier ones, so padding after a row does not change it. Without a
    mask, attention uses its fast causal kernels.
    """
    batch = Padding(pad_token_id)(rows)
    return {
        "input_ids": batch["input_ids"],
        "labels": batch["labels"],
        NUM_TOKENS: batch["attention_mask"].sum(),
    }


def pack_with_bounds(rows: Sequence[EncodedRow]) -> dict[str, Any]:
    """As `pack`, with the bounds of the rows in the form that FlashAttention takes (FlashAttentionKwargs)."""
    lengths = [len(row.input_ids) for row in rows]
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {
        **pack(rows),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of the model: everything except the labels and the counts of tokens."""
    return {name: value for name, value in batch.items() if name not in {"labels", NUM_TOKENS, ROW_LABELS}}


def collate_with_row_labels(rows: Sequence[EncodedRow], collate: Collate) -> dict[str, Any]:
    """A batch with its `ROW_LABELS`. The first token of a row is never predicted."""
    labels = [sum(label != IGNORE_INDEX for label in row.labels[1:]) for row in rows]
    return {**collate(rows), ROW_LABELS: torch.tensor(labels)}


def token_count(batch: Mapping[str, Any]) -> Tensor:
    """Number of tokens of a batch, without padding."""
    counted: Tensor | None = batch.get(NUM_TOKENS)
    if counted is not None:
        return counted
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
