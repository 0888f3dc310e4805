# SPDX-License-Identifier: Apache-2.0
"""What a client may send vLLM: the fields of a request, with their limits, and text alone.

The body is read once as a whole before vLLM reads it. vLLM has fields that fetch addresses, take tensors,
replace the prompt's template, or move a request to the front of the queue. Each version adds some and removes
others, and a profile may name an image of any version. So the fields that are allowed are listed, and all
others are refused, as the built-in engine does.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_trainer.contract.vocabulary import RESERVED_TEMPLATE_ARGUMENTS
from finetune_trainer.serve.constraint_limits import (
    MAX_VALUES,
    check_grammar,
    check_regex,
    check_schema,
    check_text,
    make_size_error,
    walk_values,
)
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.requests import (
    MAX_CHOICES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_TEXTS,
    MAX_TEMPLATE_ARGUMENTS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    NEUTRAL,
    WITHOUT_EFFECT,
)
from finetune_trainer.serve.serving_metrics import UNKNOWN_MODEL, RequestMeasurement

MAX_NESTING: Final = 100
"""Levels of fields that no compiler reads."""

_BOTH: Final = WITHOUT_EFFECT | {
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "echo",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_p",
    "min_tokens",
    "model",
    "n",
    "presence_penalty",
    "prompt_logprobs",
    "repetition_penalty",
    "response_format",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "seed",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "structured_outputs",
    "temperature",
    "thinking_token_budget",
    "top_k",
    "top_p",
    "truncate_prompt_tokens",
    "truncation_side",
}
ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "/v1/chat/completions": _BOTH
    | {
        "add_generation_prompt",
        "chat_template_kwargs",
        "continue_final_message",
        "include_reasoning",
        "max_completion_tokens",
        "messages",
        "reasoning_effort",
        "tool_choice",
        "tools",
        "top_logprobs",
    },
    # vLLM's route has neither tools nor a choice of them, and ignores both.
    "/v1/completions": _BOTH | {"best_of", "prompt", "suffix", "tool_choice", "tools"},
}
"""Fields of a request that reach vLLM, by route."""
CONSTRAINTS: Final = frozenset(
    {
        "choice",
        "disable_additional_properties",
        "disable_any_whitespace",
        "disable_fallback",
        "grammar",
        "json",
        "json_object",
        "regex",
        "structural_tag",
        "whitespace_pattern",
    }
)
"""Fields of `structured_outputs` that reach vLLM."""
_LOGPROBS: Final = ("logprobs", "prompt_logprobs", "top_logprobs")
_LISTS: Final = {"bad_words": 128, "stop": MAX_STOP_TEXTS, "stop_token_ids": 128, "tools": MAX_TOOLS}
"""Limits of lists."""


def check_fields(request: Mapping[str, Any], path: str) -> None:
    """Refuse a request that may hold up vLLM or bypass what its endpoint has set. Raises RequestError.

    The work is limited by the numbers of values and characters that are allowed. vLLM checks the types of
    fields, so each check here ignores values of other types.
    """
    _check_names(request, path)
    for name, limit in _LISTS.items():
        if isinstance(value := request.get(name), list) and len(value) > limit:
            raise RequestError.invalid(f"{name}: at most {limit} are allowed. Send fewer.", name)
    _check_numbers(request)
    _check_values(request)
    _check_template(request.get("chat_template_kwargs"))
    _check_messages(request.get("messages"))
    for name in ("response_format", "tools"):
        check_schema(request.get(name), name)
    settings = request.get("structured_outputs")
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if name not in CONSTRAINTS:
            raise _unknown(f"structured_outputs.{name}")
        _check_constraint(name, value, f"structured_outputs.{name}")


def prompts_of(request: Mapping[str, Any]) -> list[Any]:
    """The prompts of a completion: texts, or lists of token ids."""
    prompt = request.get("prompt")
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _check_names(request: Mapping[str, Any], path: str) -> None:
    for name, value in request.items():
        if name in ALLOWED[path] or value is None or value in NEUTRAL.get(name, ()):
            continue
        raise _unknown(name)


def _unknown(name: str) -> RequestError:
    shown = name if len(name) <= 80 else name[:77] + "..."
    return RequestError.invalid(f"{shown}: unknown field, or not supported by this server. Omit it.", shown)


def _check_numbers(request: Mapping[str, Any]) -> None:
    for name in _LOGPROBS:
        if isinstance(value := request.get(name), int | float) and not 0 <= value <= MAX_TOP_LOGPROBS:
            raise RequestError.invalid(f"{name}: from 0 to {MAX_TOP_LOGPROBS} are allowed.", name)
    for name in ("n", "best_of"):
        if isinstance(value := request.get(name), int | float) and value > MAX_CHOICES:
            raise RequestError.invalid(f"{name}: at most {MAX_CHOICES} are allowed.", name)
    prompts, choices = len(prompts_of(request)), request.get("n")
    if prompts * (choices if isinstance(choices, int) else 1) > MAX_CHOICES:
        raise RequestError.invalid(
            f"prompt: at most {MAX_CHOICES} answers are allowed, n for each prompt. Send several requests.",
            "prompt",
        )
    for name in ("bad_words", "stop"):
        texts = value if isinstance(value := request.get(name), list) else [value]
        if any(isinstance(each, str) and len(each) > MAX_STOP_CHARACTERS for each in texts):
            raise RequestError.invalid(f"{name}: at most {MAX_STOP_CHARACTERS} characters are allowed.", name)


def _check_values(request: Mapping[str, Any]) -> None:
    """Refuse a request with too many values, or one nested too deeply. Lists of token ids may be longer."""
    total = 0
    for name, value in request.items():
        if name == "prompt":
            continue
        levels = [level for _, level in walk_values(value, name)]
        total += len(levels)
        if total > MAX_VALUES:
            raise make_size_error(name)
        # The levels of a schema count once for each reference.
        if max(levels) > MAX_NESTING and name not in {"response_format", "structured_outputs", "tools"}:
            raise RequestError.invalid(f"{name}: it is nested too deeply. Simplify it.", name)
    for prompt in prompts_of(request):
        if isinstance(prompt, list) and not set(map(type, prompt)) <= {int}:
            raise RequestError.invalid("prompt: a prompt is one text, or one list of token ids.", "prompt")


def _check_template(arguments: object) -> None:
    """Refuse arguments of the chat template that the server sets, or that are not scalars."""
    if not isinstance(arguments, dict):
        return
    field = "chat_template_kwargs"
    if len(arguments) > MAX_TEMPLATE_ARGUMENTS:
        raise RequestError.invalid(f"{field}: at most {MAX_TEMPLATE_ARGUMENTS} are allowed.", field)
    for name, value in arguments.items():
        if name in RESERVED_TEMPLATE_ARGUMENTS:
            raise RequestError.invalid(f"{field}: {name} is set by the server: remove it.", field)
        if not isinstance(value, bool | int | float | str):
            raise RequestError.invalid(f"{field}.{name}: expected a text, a number or a boolean.", field)


def _check_messages(messages: object) -> None:
    """Refuse parts of messages that are not text: vLLM would fetch an image from any address."""
    for place, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [content] if isinstance(content, dict) else []
        for number, part in enumerate(parts):
            if (kind := _find_foreign_type(part)) is not None:
                raise RequestError.invalid(
                    f"messages[{place}].content[{number}]: a content part of type {kind} is not supported:"
                    " send text only, as parts of type text with the field text.",
                    "messages",
                )


def _find_foreign_type(part: object) -> str | None:
    """The type of a part that may be something else than text; None for text."""
    if isinstance(part, str) or (
        isinstance(part, dict) and part.get("type") == "text" and not part.keys() - {"type", "text"}
    ):
        return None
    # vLLM looks for a part's type in the names of its fields, too.
    kind = part.get("type") if isinstance(part, dict) else part
    names = sorted(part.keys() - {"type", "text"}) if isinstance(part, dict) else []
    return repr(names[0] if names and kind in (None, "text") else kind)[:80]


def _check_constraint(name: str, value: object, field: str) -> None:
    if not isinstance(value, str):
        check_schema(value, field)
        return
    check_text(value, field)
    if name == "grammar":
        check_grammar(value, field)
    elif name in {"regex", "whitespace_pattern"}:
        check_regex(value, field)
    elif name in {"json", "structural_tag"}:
        check_schema(_of_text(value, field), field)


def _of_text(text: str, field: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_refuse_repeated_names)
    except (ValueError, RecursionError) as error:
        raise RequestError.invalid(f"{field}: not valid JSON: {error}", field) from error


def _refuse_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ: parsers disagree about which of two equal ones counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


MAX_BODY_BYTES: Final = 1024 * 1024
"""As in the built-in engine."""
MAX_TOKENS_BODY_BYTES: Final = 16 * 1024 * 1024
"""Of a completion whose prompt is a list of token ids. Enough for two million of them."""
MAX_SIGNS: Final[Mapping[bytes, int]] = {b"{": 100, b"[": 1000, b'"': 1000, b",": 2_100_000}
"""Max numbers of signs in a body above MAX_BODY_BYTES, which are counted before it is parsed.

Each value of JSON except the first one follows one of these signs, so they limit the number of values.
"""
INLINE_BYTES: Final = 4096
"""Size to which a body is read within the event loop. Reading it takes less than passing it to a thread."""


class CheckBody:
    """ASGI layer that refuses bodies that could end or hold up vLLM, and notes the model in the measurement.

    vLLM has no limit of the size, and compiles the schemas of clients recursively within its processes. Its
    parser may be another one, so a body that this layer cannot read does not reach vLLM either.
    """

    def __init__(self, app: ASGIApp, served: Sequence[str]) -> None:
        """`served`: names of the models that the server has. vLLM takes the first one by default."""
        self._app = app
        self._served = served
        # One, so that bodies wait for each other and not the streams of the event loop for them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="request-body")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. If its client disconnects before the end of the body, vLLM does not get it."""
        measurement = RequestMeasurement.find(scope)
        if measurement is None:
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        try:
            body = await _read(receive, path)
            if body is None:
                return
            if len(body) <= INLINE_BYTES:
                self._check(body, path, measurement)
            else:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, self._check, body, path, measurement)
        except RequestError as error:
            await error.response()(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_again, send)

    def _check(self, body: bytes, path: str, measurement: RequestMeasurement) -> None:
        """Raises RequestError."""
        request = parse_body(body)
        name = request.get("model") or self._served[0]
        measurement.model = name if name in self._served else UNKNOWN_MODEL
        check_fields(request, path)


def parse_body(body: bytes) -> Mapping[str, Any]:
    """The JSON object of a body. Raises RequestError if it is something else, or too large."""
    is_large = len(body) > MAX_BODY_BYTES
    if is_large and any(body.count(sign) > limit for sign, limit in MAX_SIGNS.items()):
        raise _too_large()
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError.invalid(f"The request body is not valid JSON: {error}.") from error
    if not isinstance(request, dict):
        raise RequestError.invalid("The request body is not a JSON object.")
    if is_large and not _is_large_by_tokens(request):
        raise _too_large()
    return request


def _is_large_by_tokens(request: Mapping[str, Any]) -> bool:
    others = ((name, value) for name, value in request.items() if name != "prompt")
    texts = (value for name, each in others for value, _ in walk_values(each, name) if isinstance(value, str))
    return (
        all(isinstance(each, list) for each in prompts_of(request)) and sum(map(len, texts)) <= MAX_BODY_BYTES
    )


def _too_large() -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request body is larger than {MAX_BODY_BYTES} bytes. Only a completion whose prompt is a list of"
        f" token ids may have up to {MAX_TOKENS_BODY_BYTES}. Shorten the request.",
    )


async def _read(receive: Receive, path: str) -> bytes | None:
    """The whole body; None if the client disconnected. Raises RequestError if it is too large."""
    limit = MAX_TOKENS_BODY_BYTES if path == "/v1/completions" else MAX_BODY_BYTES
    parts: list[bytes] = []
    size = 0
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(parts)
    return None
