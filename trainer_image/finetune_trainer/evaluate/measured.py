"""One model and a batch of rows of the evaluated split, as the metrics use them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from typing_extensions import override

from finetune_trainer.evaluate.examples import Example
from finetune_trainer.model.completionloss import row_loss_sums
from finetune_trainer.model.device import mixed_precision
from finetune_trainer.model.head import ChunkedHead, chunked_head
from finetune_trainer.model.load import context_length
from finetune_trainer.tokens.batching import Padding, pad_left
from finetune_trainer.tokens.chattemplate import stop_token_ids
from finetune_trainer.tokens.encode import EncodedRow
from finetune_trainer.tokens.reasoning import AnswerReader

SPARE_TOKENS: Final = 16
"""Tokens that an answer may be longer than the correct one, if it tokenizes the same text differently."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratedAnswer:
    """What a model generated for one row."""

    text: str
    num_tokens: int
    """Number of tokens, without the one that ends the answer."""
    finish_reason: Literal["stop", "length"]


class MeasuredModel:
    """A loaded model. Decoding is greedy, so equal models score equally."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        on_token: Callable[[], None],
    ) -> None:
        """`on_token` is called after each pass that generates tokens."""
        self._model: PreTrainedModel | PeftModel = model.eval()
        self._tokenizer = tokenizer
        self._reader = AnswerReader(tokenizer)
        self._stop_ids = stop_token_ids(tokenizer, model.generation_config)
        self._max_new_tokens = max_new_tokens
        self._on_token = on_token
        self._collate = Padding(self._pad_token_id)
        self._head: ChunkedHead | None = None
        self._head_is_probed = False

    def without_adapter(self) -> AbstractContextManager[Any]:
        """In the block, an adapter has no effect."""
        if not isinstance(self._model, PeftModel):
            raise TypeError("the model has no adapter")
        return self._model.disable_adapter()

    def size(self, example: Example) -> int:
        """Length of the longest sequence that the row needs, in tokens."""
        loss = max(len(side.input_ids) for side in (example.encoded, example.rejected) if side is not None)
        choice = max(map(len, example.choices), default=0)
        return max(loss, len(example.prompt) + max(choice, self._budget(example)))

    def losses(self, rows: Sequence[EncodedRow]) -> list[tuple[float, int]]:
        """Return the summed loss of each row in nats, and its number of labelled tokens."""
        batch = self._on_device(self._collate(list(rows)))
        with torch.inference_mode(), mixed_precision(self._model.device):
            if not self._head_is_probed:
                probe = {name: tensor[:1] for name, tensor in batch.items() if name != "labels"}
                self._head, self._head_is_probed = chunked_head(self._model, probe), True
            sums, tokens = row_loss_sums(self._model, batch, self._head)
        return list(zip(sums.tolist(), tokens.tolist(), strict=True))

    def generate(self, examples: Sequence[Example]) -> list[GeneratedAnswer]:
        """Generate an answer for each row, up to the length of the correct answer and `SPARE_TOKENS`."""
        budgets = [self._budget(example) for example in examples]
        rows = [index for index, budget in enumerate(budgets) if budget > 0]
        generated: dict[int, list[int]] = {}
        if rows:
            prompts = [examples[index].prompt for index in rows]
            generated = dict(zip(rows, self._generate(prompts, max(budgets)), strict=True))
        return [
            self._answer(example.prompt, generated.get(index, [])[: budgets[index]])
            for index, example in enumerate(examples)
        ]

    def choose(self, examples: Sequence[Example]) -> list[int | None]:
        """Return the index of the most likely choice of each row, by the sum over its tokens.

        Of two that are equally likely, the first counts. None if a choice does not fit into the context.
        """
        limit = context_length(self._model.config)
        fitting = [
            index
            for index, example in enumerate(examples)
            if limit is None or len(example.prompt) + max(map(len, example.choices)) <= limit
        ]
        losses: dict[int, list[float]] = {index: [] for index in fitting}
        for choice in range(len(examples[0].choices) if fitting else 0):
            rows = self.losses([examples[index].choice(choice) for index in fitting])
            for index, (loss, _) in zip(fitting, rows, strict=True):
                losses[index].append(loss)
            self._on_token()
        return [
            losses[index].index(min(losses[index])) if index in losses else None
            for index in range(len(examples))
        ]

    def _generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        model = self._model
        inputs = self._on_device(pad_left(prompts, self._pad_token_id))
        width = inputs["input_ids"].shape[1]
        # Replaces the model's own settings, such as a repetition penalty, which would be merged with these.
        model.generation_config = GenerationConfig.from_dict(
            {
                "do_sample": False,
                "max_new_tokens": max_new_tokens,
                "eos_token_id": self._stop_ids,
                "pad_token_id": self._pad_token_id,
            }
        )
        with torch.inference_mode(), mixed_precision(model.device):
            output: Tensor = model.generate(  # type: ignore[operator] # PEFT's __getattr__ hides it
                **inputs, stopping_criteria=StoppingCriteriaList([_EachToken(self._on_token)])
            )
        tokens: list[list[int]] = output[:, width:].tolist()
        return tokens

    def _answer(self, prompt: list[int], tokens: list[int]) -> GeneratedAnswer:
        end = next((index for index, token in enumerate(tokens) if token in self._stop_ids), None)
        text = self._reader.content(prompt, tokens[:end])
        return GeneratedAnswer(text, len(tokens[:end]), "length" if end is None else "stop")

    def _budget(self, example: Example) -> int:
        """Max tokens of the answer; 0 or less if the prompt fills the model's context."""
        budget = min(self._max_new_tokens, example.answer_tokens + SPARE_TOKENS)
        limit = context_length(self._model.config)
        return budget if limit is None else min(budget, limit - len(example.prompt))

    @property
    def _pad_token_id(self) -> int:
        return int(self._tokenizer.pad_token_id)

    def _on_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._model.device) for name, tensor in batch.items()}


class _EachToken(StoppingCriteria):
    """Calls a function after each pass, and never stops."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    @override
    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        self._function()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class MeasuredBatch:
    """A batch of rows and one model; the metrics share its answers and losses."""

    def __init__(self, model: MeasuredModel, examples: Sequence[Example]) -> None:
        self._model = model
        self.examples = examples

    @cached_property
    def answers(self) -> list[GeneratedAnswer]:
        """The model's answer to each row."""
        return self._model.generate(self.examples)

    @cached_property
    def losses(self) -> list[tuple[float, int]]:
        """Summed loss of each correct answer in nats, and its number of labelled tokens."""
        return self._model.losses([example.encoded for example in self.examples])

    @cached_property
    def rejected_losses(self) -> list[tuple[float, int]]:
        """As `losses`, for the rejected answers. Every row has one."""
        return self._model.losses(
            [example.rejected for example in self.examples if example.rejected is not None]
        )

    @cached_property
    def choices(self) -> list[int | None]:
        """Index of the most likely choice for each row; None if one does not fit into the model's context."""
        return self._model.choose(self.examples)

    @property
    def chosen(self) -> Sequence[int | None]:
        """As `choices`; None for all rows if no metric has used them."""
        choices: Sequence[int | None] | None = vars(self).get("choices")
        return choices or [None] * len(self.examples)

    @property
    def generated(self) -> Sequence[GeneratedAnswer | None]:
        """The answer to each row; None for all rows if no metric has used them."""
        answers: Sequence[GeneratedAnswer] | None = vars(self).get("answers")
        return answers or [None] * len(self.examples)
