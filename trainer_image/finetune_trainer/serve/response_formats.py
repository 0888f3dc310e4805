# SPDX-License-Identifier: Apache-2.0
"""Formats of a response: the parts of a message, and chat or completion, whole or in chunks."""

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from pydantic import BaseModel

from finetune_trainer.serve.generation import Candidate, ChatFinishReason, Chosen, FinishReason
from finetune_trainer.serve.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChoiceLogprobs,
    Completion,
    Delta,
    TextChoice,
    TokenLogprob,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
)

if TYPE_CHECKING:
    from finetune_trainer.serve.answer import CompleteChoice
    from finetune_trainer.serve.tool_calls import ToolStream
    from finetune_trainer.tokens.reasoning import ReasoningStream


class MessagePart(NamedTuple):
    """A piece of an answer."""

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]


@dataclass
class MessageReader:
    """Splits an answer that arrives in pieces."""

    reasoning: "ReasoningStream | None" = None
    """None: the answer has no reasoning."""
    tools: "ToolStream | None" = None
    """None: the answer has no calls."""
    calls: int = field(default=0, init=False)
    """Number of calls so far."""

    def push(self, text: str) -> MessagePart:
        """Add a piece. Returns what is certain."""
        if self.reasoning is None:
            return self._part("", text)
        return self._part(*self.reasoning.push(text))

    def finish(self) -> MessagePart:
        """Return what was held back. Call it after the last piece."""
        reasoning, content = ("", "") if self.reasoning is None else self.reasoning.finish()
        return self._part(reasoning, content, last=True)

    def _part(self, reasoning: str, content: str, *, last: bool = False) -> MessagePart:
        if self.tools is None:
            return MessagePart(reasoning, content, ())
        found = self.tools.push(content)
        if last:
            rest = self.tools.finish()
            found = type(found)(found.content + rest.content, found.calls + rest.calls)
        self.calls += len(found.calls)
        return MessagePart(reasoning, *found)


REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


class ResponseFormat(Protocol):
    """Response of one of the two generation routes. Choices are counted from 0."""

    separates_reasoning: bool
    """Whether the response has reasoning apart from content."""

    def whole(self, choices: Sequence["CompleteChoice"], usage: TokenUsage) -> BaseModel:
        """Build the whole response."""

    def start(self, choice: int) -> BaseModel | None:
        """Build the chunk before the first text of a choice, if the format has one."""

    def part(self, choice: int, text: str, token: Chosen | None = None) -> BaseModel | None:
        """Build a chunk of text; None if all of it is held back and the token has no log-probabilities."""

    def end(self, choice: int, reason: FinishReason) -> BaseModel:
        """Build the chunk with the finish reason of a choice."""

    def usage(self, usage: TokenUsage) -> BaseModel:
        """Build the chunk with the token counts."""


class ChatFormat:
    """Responses of /v1/chat/completions."""

    def __init__(self, model: str, readers: Sequence[MessageReader]) -> None:
        """`readers`: one for each choice."""
        self.separates_reasoning = any(reader.reasoning is not None for reader in readers)
        self._readers = readers
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def whole(self, choices: Sequence["CompleteChoice"], usage: TokenUsage) -> ChatCompletion:
        """Build the whole response."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=tuple(
                ChatChoice(
                    index=index,
                    message=_message(self._readers[index], choice.text),
                    logprobs=_logprobs(choice.tokens),
                    finish_reason=self._reason(index, choice.reason),
                )
                for index, choice in enumerate(choices)
            ),
            usage=usage,
        )

    def start(self, choice: int) -> ChatCompletionChunk:
        """Build the chunk that names the role."""
        return self._chunk(ChatChunkChoice(index=choice, delta={"role": "assistant", "content": ""}))

    def part(self, choice: int, text: str, token: Chosen | None = None) -> ChatCompletionChunk | None:
        """Build a chunk of text.

        None if all of it is held back, as it may belong to a tag or a call, and the token has no
        log-probabilities.
        """
        before = self._readers[choice].calls
        delta = _delta(self._readers[choice].push(text), before)
        if token is None and not delta:
            return None
        logprobs = _logprobs(() if token is None else (token,))
        return self._chunk(ChatChunkChoice(index=choice, delta=delta, logprobs=logprobs))

    def end(self, choice: int, reason: FinishReason) -> ChatCompletionChunk:
        """Build the chunk with the finish reason, and with text that was held back."""
        before = self._readers[choice].calls
        delta = _delta(self._readers[choice].finish(), before)
        return self._chunk(
            ChatChunkChoice(index=choice, delta=delta, finish_reason=self._reason(choice, reason))
        )

    def usage(self, usage: TokenUsage) -> ChatCompletionChunk:
        """Build the chunk with the token counts."""
        return self._chunk(usage=usage)

    def _reason(self, choice: int, reason: FinishReason) -> ChatFinishReason:
        return "tool_calls" if reason == "stop" and self._readers[choice].calls else reason

    def _chunk(self, *choices: ChatChunkChoice, usage: TokenUsage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )


def _message(reader: MessageReader, text: str) -> AssistantMessage:
    first, rest = reader.push(text), reader.finish()
    content, calls = first.content + rest.content, first.calls + rest.calls
    reasoning = None if reader.reasoning is None else first.reasoning + rest.reasoning
    return AssistantMessage(
        content=content if content or not calls else None,
        tool_calls=calls,
        reasoning=reasoning,
        reasoning_content=reasoning,
    )


def _delta(part: MessagePart, calls_before: int) -> Delta:
    delta: Delta = {}
    if part.reasoning:
        delta["reasoning"] = delta["reasoning_content"] = part.reasoning
    if part.content:
        delta["content"] = part.content
    if part.calls:
        delta["tool_calls"] = tuple(
            ToolCallDelta(index=index, id=call.id, function=call.function)
            for index, call in enumerate(part.calls, calls_before)
        )
    return delta


def _logprobs(tokens: Iterable[Chosen]) -> ChoiceLogprobs | None:
    content = tuple(
        TokenLogprob(
            token=token.text,
            logprob=token.logprob,
            bytes=_bytes(token),
            top_logprobs=tuple(
                TopLogprob(token=each.text, logprob=each.logprob, bytes=_bytes(each)) for each in token.top
            ),
        )
        for token in tokens
    )
    return ChoiceLogprobs(content=content) if content else None


def _bytes(token: Candidate) -> tuple[int, ...] | None:
    return None if REPLACEMENT in token.text else tuple(token.text.encode())


class CompletionFormat:
    """Responses of /v1/completions."""

    separates_reasoning = False

    def __init__(self, model: str) -> None:
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def whole(self, choices: Sequence["CompleteChoice"], usage: TokenUsage) -> Completion:
        """Build the whole response."""
        return self._completion(
            *(
                TextChoice(index=index, text=choice.text, finish_reason=choice.reason)
                for index, choice in enumerate(choices)
            ),
            usage=usage,
        )

    def start(self, choice: int) -> None:
        """Return None: a completion starts with text."""

    def part(self, choice: int, text: str, token: Chosen | None = None) -> Completion | None:  # noqa: ARG002
        """Build a chunk of text. This route has no log-probabilities."""
        return self._completion(TextChoice(index=choice, text=text, finish_reason=None)) if text else None

    def end(self, choice: int, reason: FinishReason) -> Completion:
        """Build the chunk with the finish reason."""
        return self._completion(TextChoice(index=choice, text="", finish_reason=reason))

    def usage(self, usage: TokenUsage) -> Completion:
        """Build the chunk with the token counts."""
        return self._completion(usage=usage)

    def _completion(self, *choices: TextChoice, usage: TokenUsage | None = None) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
