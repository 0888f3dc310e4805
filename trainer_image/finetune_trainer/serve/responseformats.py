"""How an answer is written: as a chat or as a completion, whole or in chunks."""

import time
import uuid
from typing import Protocol

from pydantic import BaseModel

from finetune_trainer.serve.generation import FinishReason
from finetune_trainer.serve.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    TextChoice,
    TokenUsage,
)


class ResponseFormat(Protocol):
    """One answer of one of the two generation routes."""

    def whole(self, text: str, reason: FinishReason, usage: TokenUsage) -> BaseModel:
        """The answer in one piece."""

    def start(self) -> BaseModel | None:
        """The chunk before the first text, if there is one."""

    def part(self, text: str) -> BaseModel:
        """A chunk of text."""

    def end(self, reason: FinishReason) -> BaseModel:
        """The chunk that says why the answer ended."""

    def usage(self, usage: TokenUsage) -> BaseModel:
        """The chunk with the token counts."""


class ChatFormat:
    """Answers of /v1/chat/completions."""

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def whole(self, text: str, reason: FinishReason, usage: TokenUsage) -> ChatCompletion:
        """The answer in one piece."""
        choice = ChatChoice(message=AssistantMessage(content=text), finish_reason=reason)
        return ChatCompletion(
            id=self._id, created=self._created, model=self._model, choices=(choice,), usage=usage
        )

    def start(self) -> ChatCompletionChunk:
        """The chunk that names the role."""
        return self._chunk(ChatChunkChoice(delta={"role": "assistant", "content": ""}))

    def part(self, text: str) -> ChatCompletionChunk:
        """A chunk of text."""
        return self._chunk(ChatChunkChoice(delta={"content": text}))

    def end(self, reason: FinishReason) -> ChatCompletionChunk:
        """The chunk that says why the answer ended."""
        return self._chunk(ChatChunkChoice(delta={}, finish_reason=reason))

    def usage(self, usage: TokenUsage) -> ChatCompletionChunk:
        """The chunk with the token counts."""
        return self._chunk(usage=usage)

    def _chunk(self, *choices: ChatChunkChoice, usage: TokenUsage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )


class CompletionFormat:
    """Answers of /v1/completions."""

    def __init__(self, model: str) -> None:
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def whole(self, text: str, reason: FinishReason, usage: TokenUsage) -> Completion:
        """The answer in one piece."""
        return self._completion(TextChoice(text=text, finish_reason=reason), usage=usage)

    def start(self) -> None:
        """Text comes at once."""

    def part(self, text: str) -> Completion:
        """A chunk of text."""
        return self._completion(TextChoice(text=text, finish_reason=None))

    def end(self, reason: FinishReason) -> Completion:
        """The chunk that says why the answer ended."""
        return self._completion(TextChoice(text="", finish_reason=reason))

    def usage(self, usage: TokenUsage) -> Completion:
        """The chunk with the token counts."""
        return self._completion(usage=usage)

    def _completion(self, *choices: TextChoice, usage: TokenUsage | None = None) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
