# SPDX-License-Identifier: Apache-2.0
"""One model and a batch of rows of the evaluated split, as the metrics use them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.contract.evaluation import GenerationSettings
from finetune_trainer.evaluate.budget import AnswerBudget
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.subjects.generation import (
    AnswerGenerator,
    AnswerRequest,
    AnswerSource,
    GeneratedAnswer,
)
from finetune_trainer.model.completion_loss import ChunkedHead, chunked_head, row_loss_sums
from finetune_trainer.model.device import mixed_precision
from finetune_trainer.model.loading import context_length
from finetune_trainer.tokens.batching import Padding
from finetune_trainer.tokens.chat_template import stop_token_ids
from finetune_trainer.tokens.encoding import EncodedRow


class MeasuredModel:
    """A loaded model, its prompts and its settings for answers. Equal models score equally."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        settings: GenerationSettings | None = None,
        max_new_tokens: int,
        on_token: Callable[[], None],
        stop_ids: AbstractSet[int] = frozenset(),
        answers: AnswerSource | None = None,
    ) -> None:
        """Prepare a loaded model.

        Args:
            model: the model.
            tokenizer: its tokenizer, with the chat template of its prompts.
            settings: how answers are generated; None for the most likely tokens.
            max_new_tokens: max tokens of an answer if the settings have none.
            on_token: called after each pass that generates tokens.
            stop_ids: tokens that end an answer, in addition to those of the tokenizer and the model.
            answers: its answers to the rows; None: it generates them here.
        """
        self._model: PreTrainedModel | PeftModel = model.eval()
        settings = settings or GenerationSettings()
        self._budgets = AnswerBudget(settings.max_tokens, max_new_tokens)
        self._on_token = on_token

        def generator(settings: GenerationSettings) -> AnswerGenerator:
            stops = stop_ids | {*stop_token_ids(tokenizer, model.generation_config)}
            return AnswerGenerator(model, tokenizer, settings, stop_ids=stops, on_token=on_token)

        self._answers: AnswerSource = answers or generator(settings)
        self._greedy = generator(GenerationSettings())
        self._collate = Padding(int(tokenizer.pad_token_id))
        self._head: ChunkedHead | None = None
        self._head_is_probed = False

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
        """Return an answer to each row, with no token if its prompt fills the context."""
        return self._answers.generate(
            [AnswerRequest(example.row, example.prompt, self._budget(example)) for example in examples]
        )

    def complete(self, requests: Sequence[AnswerRequest]) -> list[list[int] | None]:
        """Return the most likely tokens after each prompt, whatever the settings for answers are.

        None where the model overflows.
        """
        return self._greedy.generate_tokens(requests)

    @property
    def context_length(self) -> int | None:
        """Max tokens of a sequence; None if the model does not state it."""
        return context_length(self._model.config)

    def choice_losses(self, examples: Sequence[Example]) -> list[list[float] | None]:
        """Return the summed loss of each choice of each row, in nats; None if a choice does not fit."""
        limit = self.context_length
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
        return [losses.get(index) for index in range(len(examples))]

    def _budget(self, example: Example) -> int:
        """Max tokens of the answer; 0 or less if the prompt fills the model's context."""
        return self._budgets.of_row(example, self.context_length)

    def _on_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._model.device) for name, tensor in batch.items()}


def likeliest(losses: Sequence[float] | None) -> int | None:
    """Return the index of the lowest loss, the first of equal ones; None without losses."""
    return None if losses is None else losses.index(min(losses))


class MeasuredBatch:
    """A batch of rows and one model; the metrics share its answers and losses."""

    def __init__(self, model: MeasuredModel, examples: Sequence[Example]) -> None:
        self._model = model
        self.examples = examples
        self.answer_seconds: float | None = None
        """Time of all answers, divided by the number of rows; None before they are generated."""

    @cached_property
    def answers(self) -> list[GeneratedAnswer]:
        """The model's answer to each row."""
        begin = time.perf_counter()
        answers = self._model.generate(self.examples)
        seconds = (time.perf_counter() - begin) / len(answers)
        self.answer_seconds = next((each.seconds for each in answers if each.seconds is not None), seconds)
        return answers

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
    def _choice_losses(self) -> list[list[float] | None]:
        return self._model.choice_losses(self.examples)

    @property
    def choices(self) -> list[int | None]:
        """Index of the most likely choice for each row, as `likeliest` finds it."""
        return [likeliest(losses) for losses in self._choice_losses]

    @property
    def chosen(self) -> Sequence[int | None]:
        """As `choices`; None for all rows if no metric has used them."""
        return self.choices if "_choice_losses" in vars(self) else [None] * len(self.examples)

    @property
    def finite(self) -> list[bool]:
        """Whether what metrics have used of each row, except its loss, is without NaN and infinity."""
        losses: Sequence[list[float] | None] = vars(self).get("_choice_losses", [None] * len(self.examples))
        return [
            (answer is None or answer.is_finite) and all(map(math.isfinite, of_choices or ()))
            for answer, of_choices in zip(self.generated, losses, strict=True)
        ]

    @property
    def generated(self) -> Sequence[GeneratedAnswer | None]:
        """The answer to each row; None for all rows if no metric has used them."""
        answers: Sequence[GeneratedAnswer] | None = vars(self).get("answers")
        return answers or [None] * len(self.examples)
