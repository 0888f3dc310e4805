# SPDX-License-Identifier: Apache-2.0
"""The model thread: continuous batching, with one token per running request per pass.

A request joins at the next pass with a free slot and leaves when it is complete, so that long answers do not
delay short ones. Rows of different adapters share one pass.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Set as AbstractSet
from typing import Final

import torch
from transformers import PreTrainedTokenizerBase

from finetune_trainer.model.generation import GenerationBatch, Sampler
from finetune_trainer.serve.admission import AdmissionControl, Refusal
from finetune_trainer.serve.detokenization import TextStream
from finetune_trainer.serve.generation import (
    Candidate,
    Chosen,
    EngineRequest,
    FinishReason,
    GenerationFailed,
    GenerationFinished,
    Token,
)
from finetune_trainer.serve.loading import LoadedModels
from finetune_trainer.tokens.reasoning import AnswerReader


class Sequence:
    """A running request, one row of the batch: samples tokens, detokenizes them, and detects the end.

    Only the model thread uses it.
    """

    def __init__(
        self,
        generation: EngineRequest,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: AbstractSet[int],
        reader: AnswerReader | None = None,
    ) -> None:
        sampling = generation.sampling
        self.generation = generation
        self.complete = False
        self.last_token = generation.prompt[-1]
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._sampler = Sampler(sampling.temperature, sampling.top_p, sampling.seed)
        decode = reader.text if reader is not None and sampling.keeps_tags else None
        self._text = TextStream(tokenizer, sampling.stop, decode)
        self.num_tokens = 0

    def accept(self, logits: torch.Tensor) -> None:
        """Sample the next token from logits of shape (vocabulary,), and send the resulting event."""
        constraint = self.generation.constraint
        if constraint is None:
            self.last_token = self._sampler.choose(logits)
        else:
            self.last_token, logits = constraint.choose(self._sampler, logits)
        self.num_tokens += 1
        chosen = self._chosen(logits)
        if self.last_token in self._stop_ids:
            self._finish(self._text.finish(), "stop", chosen)
            return
        text = self._text.push(self.last_token)
        last = self.num_tokens == self.generation.sampling.max_tokens
        if last:
            text += self._text.finish()
        if self._text.stopped:
            self._finish(text, "stop", chosen)
        elif last:
            self._finish(text, "length", chosen)
        else:
            self.generation.send(Token(text, chosen))

    def _chosen(self, logits: torch.Tensor) -> Chosen | None:
        count = self.generation.sampling.top_logprobs
        if count is None:
            return None
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(count, len(logprobs)))
        return Chosen(
            self._one(self.last_token),
            float(logprobs[self.last_token]),
            tuple(
                Candidate(self._one(token), value)
                for token, value in zip(ids.tolist(), values.tolist(), strict=True)
                if math.isfinite(value)
            ),
        )

    def _one(self, token: int) -> str:
        """The text of one token, control tokens included."""
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def _finish(self, text: str, reason: FinishReason, chosen: Chosen | None) -> None:
        self.complete = True
        self.generation.send(GenerationFinished(text, reason, self.num_tokens, chosen))


_MAX_PREFILL_TOKENS: Final = 1024
"""Max prompt tokens per prefill pass, padding included. Bounds the pause of running requests."""

logger = logging.getLogger(__name__)


class Engine:
    """Generates for all served models; `submit` and `cancel` may be called from any thread."""

    def __init__(self, served: LoadedModels, max_batch_size: int, max_queue: int) -> None:
        self._served = served
        self._max_batch_size = max_batch_size
        self._admission = AdmissionControl(max_batch_size, max_queue)
        self._batch = GenerationBatch(served.model, mixed=served.mixed)
        self._running: list[Sequence] = []
        self._waiting: deque[EngineRequest] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._pass_began: float | None = None
        # A daemon, so that an error in another thread still ends the process.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start the model thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the model thread after its current pass. Running, waiting and later requests fail."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the model thread is alive."""
        return self._thread.is_alive()

    @property
    def pass_seconds(self) -> float:
        """Duration of the current pass so far; 0 between passes."""
        began = self._pass_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a slot in the batch."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of requests in the batch."""
        return len(self._running)

    def submit(
        self, *generations: EngineRequest, remaining_seconds: float | None = None, returning: bool = False
    ) -> Refusal | None:
        """Queue the answers of one request. Returns why not if they would wait too long.

        An empty queue has room for any request.

        Args:
            generations: the answers.
            remaining_seconds: time until the deadline of the request; None without a deadline.
            returning: whether the request was refused before.
        """
        with self._changed:
            if self._stopping:
                for generation in generations:
                    generation.send(GenerationFailed())
                return None
            refusal = self._admission.refusal(
                len(self._waiting),
                len(generations),
                remaining_seconds=remaining_seconds,
                returning=returning,
                unfinished_seconds=self.pass_seconds,
            )
            if refusal is None:
                self._waiting.extend(generations)
                self._changed.notify()
            return refusal

    def max_wait(self, remaining_seconds: float | None, *, returning: bool = False) -> float:
        """Seconds after which a request that still waits should `leave`."""
        with self._changed:
            return self._admission.max_wait(remaining_seconds, returning=returning)

    def leave(self, *generations: EngineRequest) -> Refusal | None:
        """Remove the answers of one request from the queue, and refuse it. None if one has left the queue."""
        with self._changed:
            if not all(generation in self._waiting for generation in generations):
                return None
            ahead = self._waiting.index(generations[0])
            for generation in generations:
                self._waiting.remove(generation)
            return self._admission.give_up(ahead, len(generations))

    def cancel(self, generation: EngineRequest) -> None:
        """Drop an answer whose client has left. Has no effect on a complete one."""
        with self._changed:
            generation.cancelled = True
            if generation in self._waiting:
                self._waiting.remove(generation)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._drop([row for row in self._running if row.generation.cancelled])
                self._pass_began = time.monotonic()
                self._join()
                if self._running:
                    self._pass_began = time.monotonic()
                    self._step()
                self._pass_began = None
        finally:
            with self._changed:
                self._stopping = True
                unfinished = [*(row.generation for row in self._running), *self._waiting]
                self._waiting.clear()
            for generation in unfinished:
                generation.send(GenerationFailed())

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._running or self._waiting)
            return not self._stopping

    def _admit(self) -> list[Sequence]:
        """Take waiting requests in order, up to the free slots and the prompt tokens of one pass."""
        admitted: list[EngineRequest] = []
        width = 0
        with self._changed:
            while self._waiting and len(self._running) + len(admitted) < self._max_batch_size:
                width = max(width, len(self._waiting[0].prompt))
                if admitted and width * (len(admitted) + 1) > _MAX_PREFILL_TOKENS:
                    break
                admitted.append(self._waiting.popleft())
        return [
            Sequence(
                generation,
                self._served.tokenizer,
                self._served.stop_ids,
                self._served.readers.of(generation.model),
            )
            for generation in admitted
        ]

    def _join(self) -> None:
        new = self._admit()
        if not new:
            return
        try:
            logits = self._batch.join(
                [row.generation.prompt for row in new],
                [self._served.adapters[row.generation.model] for row in new],
            )
        except Exception:
            # The running rows are untouched: only the new ones fail.
            logger.exception("the prefill of %d prompts failed", len(new))
            for row in new:
                row.generation.send(GenerationFailed())
            return
        self._running.extend(new)
        self._accept(new, logits)
        self._measure(len(new))

    def _step(self) -> None:
        try:
            logits = self._batch.step([row.last_token for row in self._running])
        except Exception:
            logger.exception("a pass over %d requests failed", len(self._running))
            for row in self._running:
                row.generation.send(GenerationFailed())
            self._running = []
            self._batch.clear()
            return
        rows = len(self._running)
        self._accept(self._running, logits)
        self._measure(rows)

    def _measure(self, rows: int) -> None:
        """Add the pass that generated a token for this many rows to the measured throughput."""
        with self._changed:
            # A batch that requests wait for is full. A larger batch than this one takes little longer.
            tokens = rows if self._waiting else self._max_batch_size
            self._admission.throughput.measure(tokens, self.pass_seconds)

    def _accept(self, rows: list[Sequence], logits: torch.Tensor) -> None:
        done = []
        for row, row_logits in zip(rows, logits, strict=True):
            try:
                row.accept(row_logits)
            except Exception:
                logger.exception("sampling a token failed")
                row.generation.send(GenerationFailed())
                done.append(row)
            else:
                if row.complete:
                    done.append(row)
                    with self._changed:
                        self._admission.throughput.answered(row.num_tokens)
        self._drop(done)

    def _drop(self, rows: list[Sequence]) -> None:
        kept = [index for index, row in enumerate(self._running) if row not in rows]
        self._batch.keep(kept)
        self._running = [self._running[index] for index in kept]
