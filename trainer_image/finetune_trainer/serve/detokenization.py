# SPDX-License-Identifier: Apache-2.0
"""The text of an answer from its tokens: whole characters, truncated at a stop string."""

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from finetune_trainer.tokens.reasoning import AnswerReader, ReasoningParser


class AnswerReaders:
    """The reader for each model: that of the chat template with which the model was trained."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_templates: Mapping[str, str],
        parser: ReasoningParser | None = None,
    ) -> None:
        """Make the readers.

        Args:
            tokenizer: tokenizer of all models.
            chat_templates: templates by model name; other models have the tokenizer's.
            parser: parser of the reasoning of all models; None for those that fit the templates.
        """
        self._default = AnswerReader(tokenizer, parser=parser)
        self._own = {
            name: AnswerReader(tokenizer, template, parser) for name, template in chat_templates.items()
        }

    def of(self, model: str) -> AnswerReader:
        """The reader for answers of the model."""
        return self._own.get(model, self._default)


_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Text of one answer.

    The results of `push` and `finish`, joined, equal the decoding of all ids at once, up to the stop string.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str],
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        """By default, the text has no control tokens; `decode` may keep some."""
        self._tokenizer = tokenizer
        self._decode_ids = decode
        self._stop = stop
        self._ids: list[int] = []
        # Decoding starts at ids whose text is known, because a tokenizer may drop a leading space.
        self._known_start = 0
        self._known_end = 0
        self._held = ""
        self.stopped = False
        """Whether a stop string was found. The text ends before it."""

    def push(self, token_id: int) -> str:
        """Add a token. Returns the text that is now certain: often empty, sometimes several characters."""
        self._ids.append(token_id)
        return self._release(self._decode_new(last=False), last=False)

    def finish(self) -> str:
        """Return the text that was held back. Call it after the last token."""
        return "" if self.stopped else self._release(self._decode_new(last=True), last=True)

    def _decode_new(self, *, last: bool) -> str:
        known = self._decode(self._ids[self._known_start : self._known_end])
        text = self._decode(self._ids[self._known_start :])
        # An incomplete character decodes to the replacement character.
        if not last and (len(text) <= len(known) or text.endswith(_REPLACEMENT)):
            return ""
        self._known_start, self._known_end = self._known_end, len(self._ids)
        return text[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        if self._decode_ids is not None:
            return self._decode_ids(ids)
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _release(self, new: str, *, last: bool) -> str:
        text = self._held + new
        ends = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        num_held = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
