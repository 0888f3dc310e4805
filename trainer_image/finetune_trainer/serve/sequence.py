# SPDX-License-Identifier: Apache-2.0
"""One running request: samples tokens, detokenizes them, and detects the end."""

import math
from collections.abc import Set as AbstractSet

import torch
from transformers import PreTrainedTokenizerBase

from finetune_trainer.model.generation import Sampler
from finetune_trainer.serve.detokenize import TextStream
from finetune_trainer.serve.generation import (
    Candidate,
    Chosen,
    EngineRequest,
    FinishReason,
    GenerationFinished,
    Token,
)
from finetune_trainer.tokens.reasoning import AnswerReader


class Sequence:
    """State of one row of the batch. Only the model thread uses it."""

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
