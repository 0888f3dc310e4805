"""One running request: samples tokens, detokenizes them, and detects the end."""

from collections.abc import Set as AbstractSet

import torch
from transformers import PreTrainedTokenizerBase

from finetune_trainer.model.sampling import Sampler
from finetune_trainer.serve.detokenize import TextStream
from finetune_trainer.serve.generation import EngineRequest, FinishReason, GenerationFinished, Token
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
        self._stop_ids = stop_ids
        self._sampler = Sampler(sampling.temperature, sampling.top_p, sampling.seed)
        decode = reader.text if reader is not None and sampling.keeps_tags else None
        self._text = TextStream(tokenizer, sampling.stop, decode)
        self._tokens = 0

    def accept(self, logits: torch.Tensor) -> None:
        """Sample the next token from logits of shape (vocabulary,), and send the resulting event."""
        self.last_token = self._sampler.choose(logits)
        self._tokens += 1
        if self.last_token in self._stop_ids:
            self._finish(self._text.finish(), "stop")
            return
        text = self._text.push(self.last_token)
        last = self._tokens == self.generation.sampling.max_tokens
        if last:
            text += self._text.finish()
        if self._text.stopped:
            self._finish(text, "stop")
        elif last:
            self._finish(text, "length")
        else:
            self.generation.send(Token(text))

    def _finish(self, text: str, reason: FinishReason) -> None:
        self.complete = True
        self.generation.send(GenerationFinished(text, reason, self._tokens))
