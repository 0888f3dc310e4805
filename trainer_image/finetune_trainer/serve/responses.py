# SPDX-License-Identifier: Apache-2.0
"""Responses of the OpenAI API."""

from typing import Literal

from pydantic import BaseModel, Field

from finetune_trainer.serve.generation import ChatFinishReason, FinishReason

DeltaField = Literal["role", "content", "reasoning", "reasoning_content", "tool_calls"]


class TokenUsage(BaseModel):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CalledFunction(BaseModel):
    """The function of a call."""

    name: str
    arguments: str
    """A JSON object."""


class ToolCall(BaseModel):
    """A call of a tool in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ToolCallDelta(ToolCall):
    """A call in a chunk: each is complete."""

    index: int


Delta = dict[DeltaField, str | tuple[ToolCallDelta, ...]]


class AssistantMessage(BaseModel):
    """Message of the assistant in a chat response."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """None: the message has calls only."""
    tool_calls: tuple[ToolCall, ...] = Field(default=(), exclude_if=lambda calls: not calls)
    reasoning: str | None = Field(default=None, exclude_if=lambda text: text is None)
    """Reasoning of the model, under the name that vLLM uses. Absent if the template has none."""
    reasoning_content: str | None = Field(default=None, exclude_if=lambda text: text is None)
    """The same text, under the name that DeepSeek's API and older versions of vLLM use."""
    refusal: None = None


class TopLogprob(BaseModel):
    """A token that could come at one place of an answer."""

    token: str
    logprob: float
    """Natural logarithm of its probability."""
    bytes: tuple[int, ...] | None
    """UTF-8 bytes of the token; None for a token that is a part of a character."""


class TokenLogprob(TopLogprob):
    """One token of an answer."""

    top_logprobs: tuple[TopLogprob, ...]
    """The most probable tokens at its place, in descending order."""


class ChoiceLogprobs(BaseModel):
    """Log-probabilities of the tokens of a choice or of a chunk, reasoning included."""

    content: tuple[TokenLogprob, ...]
    refusal: None = None


class ChatChoice(BaseModel):
    """A choice of a chat response."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: ChatFinishReason


class ChatChunkChoice(BaseModel):
    """The only choice of a chunk."""

    index: int
    delta: Delta
    """Addition of the chunk to the message."""
    logprobs: ChoiceLogprobs | None = None
    finish_reason: ChatFinishReason | None = None


class TextChoice(BaseModel):
    """A choice of a completion, or the only one of its chunks."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None


class ChatCompletion(BaseModel):
    """Response to POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: TokenUsage


class ChatCompletionChunk(BaseModel):
    """One event of a streamed chat. The event with token counts has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    usage: TokenUsage | None = None


class Completion(BaseModel):
    """Response to POST /v1/completions, and one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: TokenUsage | None = None


class ModelCard(BaseModel):
    """A served model. `parent` is the base model of an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["finetune-operator"] = "finetune-operator"
    parent: str | None
    max_model_len: int


class ModelList(BaseModel):
    """Response to GET /v1/models."""

    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...]
