"""Encoded rows in the columns that TRL's trainers and collators read."""

import random
from collections.abc import Sequence
from typing import Any, Self

from datasets import Dataset
from typing_extensions import override

from finetune_trainer.contract.vocabulary import MethodType
from finetune_trainer.tokens.answers import EncodedAnswers
from finetune_trainer.tokens.encode import IGNORED

Columns = dict[str, Any]


class TokenizedRows(Dataset):  # type: ignore[misc] # datasets has no types
    """Rows that TRL has nothing to prepare of: it tokenizes by `map` and `filter`, and these are tokens."""

    @classmethod
    def of(cls, rows: Sequence[Columns]) -> Self:
        """In memory; nothing is written to a cache."""
        made: Self = cls.from_list(list(rows))
        return made

    @override
    def map(self, *args: Any, **kwargs: Any) -> Self:
        return self

    @override
    def filter(self, *args: Any, **kwargs: Any) -> Self:
        return self


def columns(method: MethodType, rows: Sequence[EncodedAnswers], batch_size: int, seed: int) -> list[Columns]:
    """What the method's trainer takes; for KTO in another order, the same for the same seed."""
    if method == "DPO":
        return [
            {"prompt_ids": row.prompt, "chosen_ids": row.answer, "rejected_ids": row.rejected or []}
            for row in rows
        ]
    if method == "ORPO":
        return [
            {
                **_sequence("chosen", row.prompt, row.answer),
                **_sequence("rejected", row.prompt, row.rejected or []),
            }
            for row in rows
        ]
    return _kto_columns(rows, batch_size, seed)


def _kto_columns(rows: Sequence[EncodedAnswers], batch_size: int, seed: int) -> list[Columns]:
    """Prompt, answer and label, and an answer to another prompt, by which KTO estimates how far it has moved.

    The other answer is that of the row before in the same batch, as in TRL, which therefore reads the rows in
    this order in every epoch: they are shuffled here, once.
    """
    order = list(rows)
    random.Random(seed).shuffle(order)  # noqa: S311 - an order of rows is no secret
    return [
        {
            "prompt_ids": row.prompt,
            "completion_ids": row.answer,
            "KL_completion_ids": batch[at - 1].answer,
            "label": row.label,
        }
        for batch in (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        for at, row in enumerate(batch)
    ]


def _sequence(name: str, prompt: list[int], answer: list[int]) -> Columns:
    ids = [*prompt, *answer]
    return {
        f"{name}_input_ids": ids,
        f"{name}_attention_mask": [1] * len(ids),
        f"{name}_labels": [*[IGNORED] * len(prompt), *answer],
    }
