"""The metrics of one model."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.contract.vocabulary import Metric
from finetune_trainer.evaluate.examples import Example, text_of
from finetune_trainer.model.load import context_length
from finetune_trainer.model.loss import mean_completion_loss, row_losses
from finetune_trainer.stage.meter import Meter
from finetune_trainer.tokens.batching import Padding, left_padded

SPARE_TOKENS: Final = 16
"""Tokens that an answer may be longer than the right one, in case it spells the same text otherwise."""

logger = logging.getLogger(__name__)


class Measure:
    """Computes metrics for models that share one tokenizer; greedy, so that equal models score equally."""

    def __init__(
        self,
        examples: list[Example],
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: list[int],
        *,
        batch_size: int,
        max_new_tokens: int,
        meter: Meter,
    ) -> None:
        self._examples = examples
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._batch_size = batch_size
        self._max_new_tokens = max_new_tokens
        self._meter = meter
        too_long = sum(example.answer_tokens > max_new_tokens for example in examples)
        if too_long:
            logger.warning(
                "%d right answers are longer than the %d tokens that are generated: exact_match counts these"
                " rows as wrong",
                too_long,
                max_new_tokens,
            )

    def value(self, metric: Metric, model: PreTrainedModel | PeftModel) -> float:
        """`exact_match` or `preference_accuracy` from 0 to 1, or `loss` in nats a token. Raises Preempted."""
        measures: dict[Metric, Callable[[PreTrainedModel | PeftModel], float]] = {
            "exact_match": self._exact_match,
            "loss": self._loss,
            "preference_accuracy": self._preference_accuracy,
        }
        return measures[metric](model.eval())

    def _preference_accuracy(self, model: PreTrainedModel | PeftModel) -> float:
        """Share of rows whose chosen answer is the likelier one, by the mean log-likelihood of its tokens.

        By the mean, because a sum is mostly the higher the shorter an answer is; that of each model alone,
        without a reference, so that models can be set beside each other.
        """
        collate, right = Padding(self._pad_token_id), 0
        for batch in self._batches():
            sides = [
                [example.encoded for example in batch],
                [example.rejected for example in batch if example.rejected is not None],
            ]
            with torch.inference_mode():
                chosen, rejected = (row_losses(model, _on(model.device, collate(side))) for side in sides)
            right += int((chosen < rejected).sum())
        return right / len(self._examples)

    def _loss(self, model: PreTrainedModel | PeftModel) -> float:
        collate = Padding(self._pad_token_id)

        def batches() -> Iterator[Mapping[str, Tensor]]:
            for batch in self._batches():
                yield _on(model.device, collate([example.encoded for example in batch]))

        return mean_completion_loss(model, batches())

    def _exact_match(self, model: PreTrainedModel | PeftModel) -> float:
        right = 0
        for batch in self._batches():
            answers = self._generate(model, batch)
            right += sum(answer in example.accepted for example, answer in zip(batch, answers, strict=True))
        return right / len(self._examples)

    def _generate(self, model: PreTrainedModel | PeftModel, batch: list[Example]) -> list[str]:
        inputs = _on(model.device, left_padded([example.prompt for example in batch], self._pad_token_id))
        width = inputs["input_ids"].shape[1]
        wanted = min(self._max_new_tokens, max(example.answer_tokens for example in batch) + SPARE_TOKENS)
        limit = context_length(model.config)
        # The model's own settings, such as a repetition penalty, would be used beside ours.
        model.generation_config = GenerationConfig.from_dict(
            {
                "do_sample": False,
                "max_new_tokens": wanted if limit is None else min(wanted, limit - width),
                "eos_token_id": self._stop_ids,
                "pad_token_id": self._pad_token_id,
            }
        )
        with torch.inference_mode():
            output: Tensor = model.generate(**inputs)  # type: ignore[operator] # PEFT's __getattr__ hides it
        return [text_of(self._tokenizer, self._until_stop(row)) for row in output[:, width:].tolist()]

    def _until_stop(self, answer: list[int]) -> list[int]:
        end = next((at for at, token in enumerate(answer) if token in self._stop_ids), len(answer))
        return answer[:end]

    def _batches(self) -> Iterator[list[Example]]:
        for start in range(0, len(self._examples), self._batch_size):
            batch = self._examples[start : start + self._batch_size]
            yield batch
            self._meter.add(len(batch))

    @property
    def _pad_token_id(self) -> int:
        return int(self._tokenizer.pad_token_id)


def _on(device: torch.device, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
