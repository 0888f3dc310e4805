"""One model and the rows of the evaluated split, as the metrics use them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from peft import PeftModel
from torch import Tensor, inference_mode
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.evaluate.examples import Example
from finetune_trainer.model.load import context_length
from finetune_trainer.stage.meter import StageMeter
from finetune_trainer.tokens.batching import Padding, pad_left
from finetune_trainer.tokens.encode import EncodedRow
from finetune_trainer.tokens.reasoning import AnswerReader

SPARE_TOKENS: Final = 16
"""Tokens that an answer may be longer than the correct one, if it tokenizes the same text differently."""

logger = logging.getLogger(__name__)


class MeasuredModel:
    """A subject of the evaluation and its rows. Decoding is greedy, so equal models score equally."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        examples: list[Example],
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: list[int],
        *,
        batch_size: int,
        max_new_tokens: int,
        meter: StageMeter,
    ) -> None:
        self.model: PreTrainedModel | PeftModel = model.eval()
        self.examples = examples
        self._tokenizer = tokenizer
        self._reader = AnswerReader(tokenizer)
        self._stop_ids = stop_ids
        self._batch_size = batch_size
        self._max_new_tokens = max_new_tokens
        self._meter = meter
        self._collate = Padding(self._pad_token_id)
        self._answers: list[list[str]] = []
        """Generated answers, per batch."""

    def batches(self) -> Iterator[list[Example]]:
        """Iterate over all examples, and count them as progress. Raises Preempted."""
        for start in range(0, len(self.examples), self._batch_size):
            batch = self.examples[start : start + self._batch_size]
            yield batch
            self._meter.add(len(batch))

    def padded(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """Collate rows on the model's device: `input_ids` and `labels` of shape (rows, tokens)."""
        return self._on_device(self._collate(list(rows)))

    def answered(self) -> Iterator[tuple[Example, str]]:
        """Iterate over all examples with the model's answers, which are generated once. Raises Preempted."""
        if not self._answers:
            self._warn_of_long_answers()
        for number, batch in enumerate(self.batches()):
            if number == len(self._answers):
                self._answers.append(self._generate(batch))
            yield from zip(batch, self._answers[number], strict=True)

    def _warn_of_long_answers(self) -> None:
        too_long = sum(example.answer_tokens > self._max_new_tokens for example in self.examples)
        if too_long:
            logger.warning(
                "%d correct answers are longer than the %d generated tokens: their rows count as wrong",
                too_long,
                self._max_new_tokens,
            )

    def _generate(self, batch: list[Example]) -> list[str]:
        model = self.model
        inputs = self._on_device(pad_left([example.prompt for example in batch], self._pad_token_id))
        width = inputs["input_ids"].shape[1]
        max_new_tokens = min(
            self._max_new_tokens, max(example.answer_tokens for example in batch) + SPARE_TOKENS
        )
        limit = context_length(model.config)
        # Replaces the model's own settings, such as a repetition penalty, which would be merged with these.
        model.generation_config = GenerationConfig.from_dict(
            {
                "do_sample": False,
                "max_new_tokens": max_new_tokens if limit is None else min(max_new_tokens, limit - width),
                "eos_token_id": self._stop_ids,
                "pad_token_id": self._pad_token_id,
            }
        )
        with inference_mode():
            output: Tensor = model.generate(**inputs)  # type: ignore[operator] # PEFT's __getattr__ hides it
        return [
            self._reader.content(example.prompt, self._until_stop(row))
            for example, row in zip(batch, output[:, width:].tolist(), strict=True)
        ]

    def _until_stop(self, answer: list[int]) -> list[int]:
        end = next((index for index, token in enumerate(answer) if token in self._stop_ids), len(answer))
        return answer[:end]

    @property
    def _pad_token_id(self) -> int:
        return int(self._tokenizer.pad_token_id)

    def _on_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}
