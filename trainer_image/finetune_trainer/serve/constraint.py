# SPDX-License-Identifier: Apache-2.0
"""Restricts the content of an answer to a JSON Schema: no token is chosen that would leave it.

The grammars are those of llguidance, <https://github.com/guidance-ai/llguidance>, which vLLM uses, too.
"""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from finetune_trainer.model.generation import Sampler
from finetune_trainer.serve.constraint_limits import check_schema, make_schema_error
from finetune_trainer.serve.detokenization import AnswerReaders, TextStream
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.tokens.reasoning import AnswerReader, ReasoningStream

FIELD: Final = "response_format"
OPTIONS: Final[Any] = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,33}"}
"""White space between two tokens of JSON: at most a line break and 32 columns.

Without a bound, some models write white space without end.
"""
_MAX_ERROR_CHARACTERS: Final = 300


class UnconstrainedPrefix:
    """What comes before the content of an answer, and is free: its reasoning, and tags."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reader: AnswerReader, *, is_open: bool) -> None:
        """`is_open`: whether the prompt ends inside of reasoning."""
        assert reader.parser is not None  # noqa: S101 - the caller checks it
        self._tokenizer = tokenizer
        self._reader = reader
        self._stream = ReasoningStream(reader.parser, is_open=is_open)
        self._text = TextStream(tokenizer, (), reader.text)
        # Harmony has a tag before the content, too.
        self._begun = is_open or bool(reader.parser.content_open)
        self.over = False
        """Whether the content has begun."""

    def takes(self, token: int) -> bool:
        """Whether the model's next token belongs to the beginning. If not, the content begins with it."""
        if not self._begun and not self._opens(token):
            self.over = True
            return False
        self._begun = True
        self._stream.push(self._text.push(token))
        self.over = self._stream.in_content
        return True

    def _opens(self, token: int) -> bool:
        """Whether the token is the tag before reasoning, or a token of its own that the tag begins with."""
        text, tag = self._reader.text([token]).strip(), self._stream.parser.open.strip()
        begins = bool(text) and (tag.startswith(text) or text.startswith(tag))
        return begins and (text == tag or token in self._tokenizer.added_tokens_decoder)


class Constraint:
    """State of one answer's grammar. After its creation, only the model thread uses it."""

    def __init__(
        self, matcher: LLMatcher, stop_ids: AbstractSet[int], beginning: UnconstrainedPrefix | None = None
    ) -> None:
        """`beginning`: what comes before the content; None if the answer is nothing but content."""
        self._matcher = matcher
        self._stop_ids = stop_ids
        self._beginning = beginning

    def choose(self, sampler: Sampler, logits: torch.Tensor) -> tuple[int, torch.Tensor]:
        """Choose the next token, and return it with the logits among which it was chosen.

        Logits have shape (vocabulary,); those of tokens that are not allowed become -inf.
        Raises ValueError if the grammar becomes too complex for this answer.
        """
        if self._beginning is not None and not self._beginning.over:
            token = sampler.choose(logits)
            if token in self._stop_ids or self._beginning.takes(token):
                return token, logits
        logits = logits.masked_fill(~self._allowed(len(logits)), -torch.inf)
        token = sampler.choose(logits)
        if token not in self._stop_ids and not self._matcher.consume_token(token):
            raise ValueError(self._matcher.get_error())
        return token, logits

    def _allowed(self, vocabulary: int) -> torch.Tensor:
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise ValueError(self._matcher.get_error())
        bits = np.unpackbits(words, bitorder="little")[:vocabulary]
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        allowed[: len(bits)] = torch.from_numpy(bits.astype(bool))
        # The grammar knows one token that ends an answer.
        allowed[sorted(self._stop_ids)] = self._matcher.is_accepting()
        return allowed


class Grammars:
    """Compiles the schemas of requests for one tokenizer. Not thread-safe."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        stop_ids: AbstractSet[int],
        readers: AnswerReaders,
    ) -> None:
        """`vocabulary`: number of logits; may be more than the tokenizer's tokens."""
        self._tokenizer = tokenizer
        self._size = vocabulary
        self._stop_ids = frozenset(token for token in stop_ids if token < vocabulary)
        self._readers = readers

    def constraints(
        self, schema: Mapping[str, Any], prompt: list[int], model: str, choices: int
    ) -> list[Constraint]:
        """Constraints for the choices of an answer to a chat. Raises RequestError for a schema.

        Args:
            schema: JSON Schema of the content.
            prompt: token ids.
            model: served name.
            choices: number of choices.
        """
        check_schema(schema, FIELD)
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=OPTIONS)
        except ValueError as error:
            raise _make_schema_error(str(error)) from error
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise _make_schema_error(matcher.get_error())
        reader = self._readers.of(model)
        is_open = reader.is_open(prompt)
        return [
            Constraint(
                matcher.deep_copy(),
                self._stop_ids,
                None
                if reader.parser is None
                else UnconstrainedPrefix(self._tokenizer, reader, is_open=is_open),
            )
            for _ in range(choices)
        ]

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """The tokens as text. It takes about a second, so it is made for the first request that needs it."""
        tokenizer: Any = self._tokenizer
        try:
            return from_tokenizer(tokenizer, max(self._size, len(self._tokenizer)))
        except ValueError as error:
            raise RequestError.invalid(
                f"The tokenizer of this model cannot be restricted to a schema: {error}. Omit the field.",
                FIELD,
            ) from error


def _make_schema_error(why: str) -> RequestError:
    return make_schema_error(" ".join(why.split())[:_MAX_ERROR_CHARACTERS], FIELD)
