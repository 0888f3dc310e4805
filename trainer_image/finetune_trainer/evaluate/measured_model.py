# SPDX-License-Identifier: Apache-2.0
"""A loaded model as the metrics use it: it generates answers and has losses, batch by batch.

Answers are generated with the settings of an endpoint. A row leaves the batch when its answer is complete, so
that the remaining rows take less time. Answers are greedy unless the settings have a temperature. Then each
row has a random generator of its own: its tokens do not depend on the other rows of the batch, and all models
draw the same numbers for it.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from typing_extensions import override

from finetune_trainer.contract.evaluation import GenerationSettings
from finetune_trainer.evaluate.examples import AnswerBudget, Example
from finetune_trainer.model.completion_loss import ChunkedHead, chunked_head, row_loss_sums
from finetune_trainer.model.device import mixed_precision
from finetune_trainer.model.generation import GenerationBatch, Sampler, can_leave_batch
from finetune_trainer.model.loading import context_length
from finetune_trainer.tokens.batching import Padding, pad_left
from finetune_trainer.tokens.chat_template import stop_token_ids
from finetune_trainer.tokens.encoding import EncodedRow
from finetune_trainer.tokens.reasoning import AnswerReader


@dataclass(frozen=True)
class AnswerRequest:
    """The prompt of one row."""

    row: int
    """Number of the row in its split, which is part of the seed of its answer."""
    prompt: list[int]
    max_tokens: int
    """Max tokens of the answer; 0 or less for no answer."""
    ends: Callable[[Sequence[int]], bool] | None = None
    """Whether an answer of these tokens is complete; None: only a stop token or the length ends it."""


@dataclass(frozen=True)
class GeneratedAnswer:
    """What a model generated for one row."""

    text: str
    """The text as a client of the endpoint receives it, without surrounding white space."""
    num_tokens: int
    """Number of tokens, without the one that ends the answer."""
    finish_reason: Literal["stop", "length"]
    is_finite: bool = True
    """False if it ended because the model overflowed, so that its logits were not finite."""
    seconds: float | None = None
    """Time of the answer in another process; None if it was generated in this one."""


class AnswerSource(Protocol):
    """Where the answers of one model come from."""

    def generate(self, requests: Sequence[AnswerRequest]) -> list[GeneratedAnswer]:
        """Return an answer to each request, in their order."""


def row_seed(settings: GenerationSettings, row: int) -> int | None:
    """Seed of the answer to a row, the same for all models; None for the most likely tokens."""
    if settings.temperature == 0:
        return None
    digest = hashlib.sha256(f"{settings.seed}:{row}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


class AnswerGenerator:
    """Answers prompts with one loaded model."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: GenerationSettings,
        *,
        stop_ids: AbstractSet[int],
        on_token: Callable[[], None],
    ) -> None:
        """`stop_ids` end an answer. `on_token` is called after each pass that generates tokens."""
        self._model = model
        self._tokenizer = tokenizer
        self._reader = AnswerReader(tokenizer)
        self._settings = settings
        self._stop_ids = stop_ids
        self._on_token = on_token

    def generate(self, requests: Sequence[AnswerRequest]) -> list[GeneratedAnswer]:
        """Generate an answer to each request, in their order.

        An answer ends where the model overflows, so that its logits are not finite.
        """
        return [
            GeneratedAnswer(
                self._reader.content(row.request.prompt, row.tokens),
                len(row.tokens),
                row.finish_reason,
                row.is_finite,
            )
            for row in self._answered(requests)
        ]

    def generate_tokens(self, requests: Sequence[AnswerRequest]) -> list[list[int] | None]:
        """As `generate`: the tokens of each answer without its last one; None if the model overflows."""
        return [row.tokens if row.is_finite else None for row in self._answered(requests)]

    def _answered(self, requests: Sequence[AnswerRequest]) -> list["_RowAnswer"]:
        rows = [_RowAnswer(request, self._stop_ids, self._sampler(request)) for request in requests]
        running = [row for row in rows if row.request.max_tokens > 0]
        if running:
            with torch.inference_mode(), mixed_precision(self._model.device):
                if can_leave_batch(self._model.config):
                    self._generate(running)
                else:
                    self._generate_padded(running)
        return rows

    def _generate(self, running: list["_RowAnswer"]) -> None:
        batch = GenerationBatch(self._model, mixed=False)
        logits = batch.join([row.request.prompt for row in running], [""] * len(running))
        while True:
            self._accept(running, logits)
            kept = [index for index, row in enumerate(running) if not row.complete]
            batch.keep(kept)
            running = [running[index] for index in kept]
            if not running:
                return
            logits = batch.step([row.tokens[-1] for row in running])

    def _generate_padded(self, rows: list["_RowAnswer"]) -> None:
        """As `_generate`, for layers with other state than keys and values: rows stay until all are complete.

        transformers knows the state of each kind of layer.
        """
        model, pad_token_id = self._model, int(self._tokenizer.pad_token_id)
        inputs = pad_left([row.request.prompt for row in rows], pad_token_id)
        # Replaces the model's own settings, such as a repetition penalty, which would be merged with these.
        model.generation_config = GenerationConfig.from_dict(
            {
                "do_sample": False,
                "max_new_tokens": max(row.request.max_tokens for row in rows),
                "eos_token_id": sorted(self._stop_ids),
                "pad_token_id": pad_token_id,
            }
        )
        model.generate(  # type: ignore[operator] # PEFT's __getattr__ hides it
            **{name: tensor.to(model.device) for name, tensor in inputs.items()},
            logits_processor=LogitsProcessorList([_Chosen(rows, self._accept, min(self._stop_ids))]),
        )

    def _accept(self, rows: Sequence["_RowAnswer"], logits: Tensor) -> None:
        """Add the next token of each row that is not complete. `logits` has shape (rows, vocabulary)."""
        values, ids = logits.max(dim=-1)
        finite = torch.isfinite(values).tolist()
        for row, is_finite, likeliest, row_logits in zip(rows, finite, ids.tolist(), logits, strict=True):
            if row.complete:
                continue
            if not is_finite:
                row.complete, row.is_finite = True, False
            else:
                row.add(likeliest if row.sampler is None else row.sampler.choose(row_logits))
        self._on_token()

    def _sampler(self, request: AnswerRequest) -> Sampler | None:
        """The sampler of one answer; None for the most likely tokens."""
        settings, seed = self._settings, row_seed(self._settings, request.row)
        return None if seed is None else Sampler(settings.temperature, settings.top_p, seed)


@dataclass
class _RowAnswer:
    """One answer while it is generated."""

    request: AnswerRequest
    stop_ids: AbstractSet[int]
    sampler: Sampler | None
    tokens: list[int] = field(default_factory=list)
    """Generated tokens, without the one that ends the answer."""
    complete: bool = False
    finish_reason: Literal["stop", "length"] = "length"
    is_finite: bool = True

    def add(self, token: int) -> None:
        """Add a token. The answer may then be complete."""
        if token in self.stop_ids:
            self.complete, self.finish_reason = True, "stop"
            return
        self.tokens.append(token)
        self.complete = len(self.tokens) == self.request.max_tokens
        if self.request.ends is not None and self.request.ends(self.tokens):
            self.complete, self.finish_reason = True, "stop"


class _Chosen(LogitsProcessor):
    """Leaves transformers the token that was chosen for each row, and a stop token for a complete row."""

    def __init__(
        self,
        rows: Sequence[_RowAnswer],
        accept: Callable[[Sequence[_RowAnswer], Tensor], None],
        stop_id: int,
    ) -> None:
        self._rows = rows
        self._accept = accept
        self._stop_id = stop_id

    @override
    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        self._accept(self._rows, scores.float().cpu())
        chosen = [self._stop_id if row.complete else row.tokens[-1] for row in self._rows]
        forced = torch.full_like(scores, -torch.inf)
        forced[torch.arange(len(chosen)), chosen] = 0
        return forced


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


def find_lowest_loss(losses: Sequence[float] | None) -> int | None:
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
        """Index of the most likely choice for each row, as `find_lowest_loss` finds it."""
        return [find_lowest_loss(losses) for losses in self._choice_losses]

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
