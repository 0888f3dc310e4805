# SPDX-License-Identifier: Apache-2.0
"""Runs the tasks of lm-evaluation-harness that a subject has not finished, with the subject's model.

To the library, the model is an `LM` with the same tokens and truncation as the library's own models.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, postprocess_generated_text
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from finetune_trainer.contract.vocabulary import FailureReason, Subject
from finetune_trainer.evaluate.measured_model import AnswerRequest, MeasuredModel
from finetune_trainer.evaluate.measurement import MEMORY_ADVICE, batch_rows
from finetune_trainer.evaluate.measurement_log import TaskLog
from finetune_trainer.model.device import OutOfMemory, catch_out_of_memory, release_memory
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow

DEFAULT_MAX_TOKENS: Final = 256
"""Of a generated answer; the library's default."""

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Batches:
    """How requests are put into batches that fit into memory."""

    activity: str
    """For messages."""
    devices: Sequence[torch.device]
    max_rows: int
    on_batch: Callable[[int], None]
    """Called after each batch with its number of requests."""

    def map(
        self,
        items: Sequence[Item],
        size: Callable[[Item], int],
        measure: Callable[[Sequence[Item]], Sequence[Value]],
    ) -> list[Value]:
        """The value of each item, the longest first; a batch that does not fit into memory is halved.

        Args:
            size: tokens that an item needs.
            measure: the values of a batch.

        Raises StageFailure (OUT_OF_MEMORY) if a single item does not fit.
        """
        values: dict[int, Value] = {}
        waiting = sorted(range(len(items)), key=lambda index: size(items[index]), reverse=True)
        max_rows = self.max_rows
        while waiting:
            longest = size(items[waiting[0]])
            batch = waiting[: batch_rows(longest, max_rows)]
            try:
                with catch_out_of_memory(self.activity, self.devices, longest, by_batch=True):
                    values.update(zip(batch, measure([items[index] for index in batch]), strict=True))
            except OutOfMemory as error:
                if len(batch) == 1:
                    raise StageFailure(FailureReason.OUT_OF_MEMORY, f"{error}. {MEMORY_ADVICE}") from error
                max_rows = len(batch) // 2
                release_memory()
                continue
            waiting = waiting[len(batch) :]
            self.on_batch(len(batch))
        return [values[index] for index in range(len(items))]


class SubjectLM(TemplateLM):  # type: ignore[misc] # the library has no types
    """Answers the library's requests with a loaded model, greedily."""

    def __init__(self, model: MeasuredModel, tokenizer: PreTrainedTokenizerBase, batches: Batches) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._model = model
        self._batches = batches

    @property
    @override
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    @override
    def prefix_token_id(self) -> int:
        """Token before a continuation without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @override
    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, verbose=False, **given))

    @override
    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihoods in nats; whether a continuation is the greedy one is always False, and not used."""
        rows = [self._row(context, continuation) for _, context, continuation in requests]
        losses = self._batches.map(rows, lambda row: row.num_tokens, self._model.losses)
        if not all(math.isfinite(loss) for loss, _ in losses):
            raise self._not_finite()
        return [(-loss, False) for loss, _ in losses]

    @override
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts = [self._request(number, *request.args) for number, request in enumerate(requests, 1)]
        answers = self._batches.map(
            prompts, lambda each: len(each.prompt) + each.max_tokens, self._model.complete
        )
        texts = []
        for tokens, request in zip(answers, requests, strict=True):
            if tokens is None:
                raise self._not_finite()
            texts.append(postprocess_generated_text(self._text(tokens), _stops(request.args[1]), None))
        return texts

    @override
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("no supported type of task needs the likelihood of whole documents")

    def _not_finite(self) -> StageFailure:
        return StageFailure(
            FailureReason.LOSS_NOT_FINITE,
            f"{self._batches.activity}: its logits are not finite, because its weights are damaged, or it"
            " overflows in its dtype",
        )

    def _row(self, context: list[int], continuation: list[int]) -> EncodedRow:
        """The last tokens that fit into the model's context."""
        ids, labels = [*context, *continuation], [*[IGNORE_INDEX] * len(context), *continuation]
        limit = self._model.context_length or len(ids)
        return EncodedRow(ids[-limit:], labels[-limit:])

    def _request(self, number: int, context: str, arguments: dict[str, Any]) -> AnswerRequest:
        max_tokens = int(arguments.get("max_gen_toks", DEFAULT_MAX_TOKENS))
        prompt, limit = self.tok_encode(context), self._model.context_length
        if limit is not None:
            max_tokens = min(max_tokens, limit - 1)
            prompt = prompt[-(limit - max_tokens) :]
        stops = _stops(arguments)

        def ends(tokens: Sequence[int]) -> bool:
            text = self._text(tokens)
            return any(stop in text for stop in stops)

        return AnswerRequest(number, prompt, max_tokens, ends if stops else None)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _stops(arguments: dict[str, Any]) -> list[str]:
    """Texts that end an answer."""
    until = arguments.get("until") or ()
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskMeasurement:
    """The tasks, and where they are done."""

    log: TaskLog
    devices: Sequence[torch.device]
    """Devices that hold the models."""
    batch_size: int
    """Max requests of a batch."""
    on_rows: Callable[[int], None]
    """Called with the number of rows that were done since the last call."""

    def measure(self, subject: Subject, tokenizer: PreTrainedTokenizerBase, model: MeasuredModel) -> None:
        """Do the missing tasks, and save each.

        Raises StageFailure (OUT_OF_MEMORY, LOSS_NOT_FINITE, STORE_UNAVAILABLE), Preempted.
        """
        for wanted in self.log.missing(subject):
            task = self.log.tasks[wanted]
            logger.info("%s of %s: %d rows", wanted.metric_name, subject, task.rows)
            requests = task.requests.all
            batches = Batches(
                activity=f"doing the task {wanted.name} with the model {subject}",
                devices=self.devices,
                max_rows=self.batch_size,
                on_batch=_of_rows(self.on_rows, task.rows, len(requests)),
            )
            lm = SubjectLM(model, tokenizer, batches)
            responses = getattr(lm, task.requests.kind)(requests, disable_tqdm=True)
            self.log.add(wanted, subject, task.values(responses))


def _of_rows(on_rows: Callable[[int], None], rows: int, requests: int) -> Callable[[int], None]:
    """Count requests as rows, of which each has one or more."""
    done = 0

    def count(finished: int) -> None:
        nonlocal done
        before, done = done, done + finished
        on_rows(done * rows // requests - before * rows // requests)

    return count
