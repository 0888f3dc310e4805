# SPDX-License-Identifier: Apache-2.0
"""Requests of the OpenAI API that this server supports, with their fields for tools and forms of the answer.

Unsupported fields are refused by name.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from finetune_trainer.contract.vocabulary import RESERVED_TEMPLATE_ARGUMENTS, ChatTemplateKwargs

ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
"""The schema of JSON mode."""


class StrictFields(BaseModel):
    """A part of a request. Fields that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NamedSchema(StrictFields):
    """A JSON Schema that the content of the answer matches."""

    name: str = Field(min_length=1, max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None
    """The answer always matches."""


class AnswerForm(StrictFields):
    """`response_format` of a request."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_with_type(self) -> "AnswerForm":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError(
                "json_schema", "json_schema is required with type json_schema, and only allowed with it"
            )
        return self

    @property
    def schema_of_content(self) -> dict[str, Any] | None:
        """The JSON Schema of the content; None for any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return ANY_OBJECT if self.type == "json_object" else None


class DeclaredFunction(StrictFields):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments."""
    strict: bool | None = None
    """SDKs send it. The template gets it as from vLLM. Arguments are not restricted to the schema."""


class DeclaredTool(StrictFields):
    """A tool that the model may call."""

    type: Literal["function"]
    function: DeclaredFunction

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        return self.model_dump(exclude_none=True)


class EarlierFunction(StrictFields):
    """The function of an earlier call."""

    name: str
    arguments: str
    """A JSON object."""

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, arguments: str) -> str:
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise PydanticCustomError("arguments", "Expected a JSON object as text")
        return arguments


class EarlierCall(StrictFields):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: EarlierFunction
    index: int | None = None
    """Accepted because chunks of a stream have it."""

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates read it: with arguments as an object."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


MAX_CHOICES: Final = 128
"""Max value of `n`, as in OpenAI's API. A server has its own limit, too."""
MAX_TOP_LOGPROBS: Final = 20
MAX_TOOLS: Final = 128
MAX_TEMPLATE_ARGUMENTS: Final = 16
MAX_STOP_TEXTS: Final = 4
MAX_STOP_CHARACTERS: Final = 256

UNSUPPORTED: Final = "unsupported"
"""Type of the validation error for an unsupported field. Its context has the name of the field."""

NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "verbosity": (),
    "web_search_options": (),
}
"""Unsupported fields that would change the answer, with the values that have no effect."""

_NEUTRAL_IN_COMPLETION: Final[Mapping[str, tuple[object, ...]]] = {
    **NEUTRAL,
    "logprobs": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none",),
    "tools": ([],),
}

WITHOUT_EFFECT: Final = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Fields of the API that never change the text of an answer."""

_NEUTRAL_IN_MESSAGE: Final[Mapping[str, tuple[object, ...]]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
}
"""Unsupported fields of a message. A client may send an earlier answer back as it received it."""


def _supported(body: object, neutral: Mapping[str, tuple[object, ...]], ignored: frozenset[str]) -> object:
    """Return the supported fields. Null means the default, as in the OpenAI API."""
    if not isinstance(body, dict):
        return body
    for name, values in neutral.items():
        value = body.get(name)
        if value is not None and value not in values:
            instead = f" or set it to {values[0]!r}" if values else ""
            raise PydanticCustomError(
                UNSUPPORTED,
                "{value} is not supported by this server: omit the field{instead}",
                {
                    "name": name,
                    "value": _brief(value),
                    "instead": instead,
                },
            )
    return {
        name: value
        for name, value in body.items()
        if value is not None and name not in neutral and name not in ignored
    }


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _text_of(content: object) -> object:
    """Join the parts of a message."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError(
                "unsupported_content",
                "A content part of type {kind} is not supported: send text only",
                {"kind": repr(kind)},
            )
        texts.append(part["text"])
    return "".join(texts)


def _one_prompt(prompt: object) -> object:
    tokens = prompt if isinstance(prompt, list) else []
    ids = bool(tokens) and all(type(token) is int and token >= 0 for token in tokens)
    if not isinstance(prompt, str) and not ids:
        raise PydanticCustomError(
            "prompt", "Expected one text or one list of token ids: send several prompts as several requests"
        )
    return prompt


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


def _template_arguments(arguments: object) -> object:
    reserved = (
        sorted(RESERVED_TEMPLATE_ARGUMENTS.intersection(arguments)) if isinstance(arguments, dict) else []
    )
    if reserved:
        raise PydanticCustomError(
            "reserved_argument", "{name} is set by the server: remove it", {"name": reserved[0]}
        )
    return arguments


class ChatMessage(StrictFields):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_text_of)]
    reasoning: str | None = None
    """Reasoning of an earlier answer, for templates that keep it."""
    reasoning_content: str | None = None
    """Another name for `reasoning`."""
    tool_calls: list[EarlierCall] = Field(default=[])
    tool_call_id: str | None = None
    """Call that a message of the role tool answers."""

    @model_validator(mode="before")
    @classmethod
    def _supported_fields(cls, body: Any) -> object:
        fields = _supported(body, _NEUTRAL_IN_MESSAGE, frozenset())
        if isinstance(fields, dict) and fields.get("tool_calls"):
            # An answer with calls may have no content.
            return {"content": "", **fields}
        return fields


class StreamOptions(StrictFields):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted because SDKs send it. The server never sends padding."""


class GenerationRequest(StrictFields):
    """Fields of both generation routes."""

    PROMPT_FIELD: ClassVar[str]
    UNSUPPORTED_FIELDS: ClassVar[Mapping[str, tuple[object, ...]]]
    """Unsupported fields, with the values that have no effect."""
    DEFAULT_TOKENS: ClassVar[int | None] = None
    """Default of the max tokens of an answer; None: the rest of the context."""

    model: str
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    """Number of choices."""
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
        BeforeValidator(_as_list),
        Field(max_length=MAX_STOP_TEXTS),
    ] = Field(default=[])
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported_fields(cls, body: Any) -> object:
        return _supported(body, cls.UNSUPPORTED_FIELDS, WITHOUT_EFFECT)

    @model_validator(mode="after")
    def _options_with_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options is only allowed with stream=true")
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        """Name and value of the field that limits the answer's tokens."""
        return "max_tokens", self.max_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """Number of most probable tokens to return with each token; None without log-probabilities."""
        return None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    PROMPT_FIELD = "messages"
    UNSUPPORTED_FIELDS = NEUTRAL

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: AnswerForm | None = None
    tools: list[DeclaredTool] = Field(default=[], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto"] | None = None
    """Default: auto."""
    chat_template_kwargs: Annotated[
        ChatTemplateKwargs, BeforeValidator(_template_arguments), Field(max_length=MAX_TEMPLATE_ARGUMENTS)
    ] = Field(default={})
    """Arguments for the chat template, as in vLLM. They replace those that the model was trained with."""

    @property
    def limit(self) -> tuple[str, int | None]:
        """Name and value of the field that limits the answer's tokens."""
        if self.max_completion_tokens is None:
            return super().limit
        return "max_completion_tokens", self.max_completion_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """Number of most probable tokens to return with each token; None without log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the model may call, as chat templates read them."""
        return [] if self.tool_choice == "none" else [tool.for_template() for tool in self.tools]

    @property
    def schema_of_content(self) -> dict[str, Any] | None:
        """The JSON Schema of the content; None for any text."""
        return None if self.response_format is None else self.response_format.schema_of_content

    @model_validator(mode="after")
    def _tools_alone(self) -> "ChatCompletionRequest":
        if self.tool_choice == "auto" and not self.tools:
            raise PydanticCustomError("tool_choice", "tool_choice is only allowed with tools")
        if self.offered_tools and self.schema_of_content is not None:
            raise PydanticCustomError(
                "tools", "a response_format of JSON is not supported with tools: omit one of them"
            )
        return self

    @model_validator(mode="after")
    def _top_of_logprobs(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs is only allowed with logprobs=true")
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatCompletionRequest":
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError(
                "two_limits", "max_tokens and max_completion_tokens differ: set max_completion_tokens only"
            )
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions; the prompt is text or token ids."""

    PROMPT_FIELD = "prompt"
    UNSUPPORTED_FIELDS = _NEUTRAL_IN_COMPLETION
    DEFAULT_TOKENS = 16

    prompt: Annotated[str | list[int], BeforeValidator(_one_prompt)]
