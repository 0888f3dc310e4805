"""Formats of a response: chat or completion, whole or in chunks."""

import time
import uuid
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel

from finetune_trainer.serve.generation import FinishReason
from finetune_trainer.serve.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    DeltaField,
    TextChoice,
    TokenUsage,
)

if TYPE_CHECKING:
    # It imports transformers, which takes seconds.
    from finetune_trainer.tokens.reasoning import Parts, ReasoningStream


class ResponseFormat(Protocol):
    """Response of one of the two generation routes."""

    separates_reasoning: bool
    """Whether the response has reasoning apart from content."""

    def whole(self, text: str, reason: FinishReason, usage: TokenUsage) -> BaseModel:
        """Build the whole response."""

    def start(self) -> BaseModel | None:
        """Build the chunk before the first text, if the format has one."""

    def part(self, text: str) -> BaseModel | None:
        """Build a chunk of text; None if all of it is held back."""

    def end(self, reason: FinishReason) -> BaseModel:
        """Build the chunk with the finish reason."""

    def usage(self, usage: TokenUsage) -> BaseModel:
        """Build the chunk with the token counts."""


class ChatFormat:
    """Responses of /v1/chat/completions."""

    def __init__(self, model: str, reasoning: "ReasoningStream | None" = None) -> None:
        """`reasoning` separates the reasoning of the answer, which gets its own field."""
        self.separates_reasoning = reasoning is not None
        self._reasoning = reasoning
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def whole(self, text: str, reason: FinishReason, usage: TokenUsage) -> ChatCompletion:
        """Build the whole response."""
        message = AssistantMessage(content=text)
        if self._reasoning is not None:
            first, rest = self._reasoning.push(text), self._reasoning.finish()
            reasoning = first.reasoning + rest.reasoning
            message = AssistantMessage(
                content=first.content + rest.content, reasoning=reasoning, reasoning_content=reasoning
            )
        choice = ChatChoice(message=message, finish_reason=reason)
        return ChatCompletion(
            id=self._id, created=self._created, model=self._model, choices=(choice,), usage=usage
        )

    def start(self) -> ChatCompletionChunk:
        """Build the chunk that names the role."""
        return self._chunk(ChatChunkChoice(delta={"role": "assistant", "content": ""}))

    def part(self, text: str) -> ChatCompletionChunk | None:
        """Build a chunk of text; None if all of it is held back, as it may be a tag around reasoning."""
        if self._reasoning is None:
            return self._chunk(ChatChunkChoice(delta={"content": text}))
        delta = _delta(self._reasoning.push(text))
        return self._chunk(ChatChunkChoice(delta=delta)) if delta else None

    def end(self, reason: FinishReason) -> ChatCompletionChunk:
        """Build the chunk with the finish reason, and with text that was held back."""
        delta = {} if self._reasoning is None else _delta(self._reasoning.finish())
        return self._chunk(ChatChunkChoice(delta=delta, finish_reason=reason))

    def usage(self, usage: TokenUsage) -> ChatCompletionChunk:
        """Build the chunk with the token counts."""
        return self._chunk(usage=usage)

    def _chunk(self, *choices: ChatChunkChoice, usage: TokenUsage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )


def _delta(parts: "Parts") -> dict[DeltaField, str]:
    delta: dict[DeltaField, str] = {}
    if parts.reasoning:
        delta["reasoning"] = delta["reasoning_content"] = parts.reasoning
    if parts.content:
        delta["content"] = parts.content
    return delta


class CompletionFormat:
    """Responses of /v1/completions."""

    separates_reasoning = False

    def __init__(self, model: str) -> None:
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def whole(self, text: str, reason: FinishReason, usage: TokenUsage) -> Completion:
        """Build the whole response."""
        return self._completion(TextChoice(text=text, finish_reason=reason), usage=usage)

    def start(self) -> None:
        """Return None: a completion starts with text."""

    def part(self, text: str) -> Completion:
        """Build a chunk of text."""
        return self._completion(TextChoice(text=text, finish_reason=None))

    def end(self, reason: FinishReason) -> Completion:
        """Build the chunk with the finish reason."""
        return self._completion(TextChoice(text="", finish_reason=reason))

    def usage(self, usage: TokenUsage) -> Completion:
        """Build the chunk with the token counts."""
        return self._completion(usage=usage)

    def _completion(self, *choices: TextChoice, usage: TokenUsage | None = None) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
