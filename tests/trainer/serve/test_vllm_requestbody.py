# SPDX-License-Identifier: Apache-2.0
"""What reaches vLLM of the bodies of requests: listed fields and text, after work that has a limit."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from finetune_trainer import serve
from finetune_trainer.contract.vocabulary import RESERVED_TEMPLATE_ARGUMENTS
from tests.trainer.serve.test_vllm_middleware import Guarded, _complete, of_content, of_text

CHAT: Final = "/v1/chat/completions"
COMPLETION: Final = "/v1/completions"
MIB: Final = 1024 * 1024
MAX_LINES: Final = 3_000_000
"""Of our code for one body. The largest that was found for a body within the limits was 1,700,000."""


class Work:
    """Counts the lines of the server's code that run, in all threads. Beyond MAX_LINES it fails."""

    def __init__(self) -> None:
        self.lines = 0
        self._folder = str(Path(serve.__file__).parent)

    def __enter__(self) -> "Work":
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _enter(self, frame: FrameType, _: str, __: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self._folder) else None

    def _line(self, _: FrameType, event: str, __: Any) -> Any:
        self.lines += event == "line"
        if self.lines > MAX_LINES:
            raise AssertionError("the work for the body has no limit")
        return self._line


def answer_to(body: str, path: str = CHAT) -> httpx.Response:
    """The answer of a server behind the middleware that answers each request with the length of its body."""
    engine = Starlette(routes=[Route("/{path:path}", _complete, methods=["POST"])])
    return asyncio.run(Guarded(engine).answer(path, content=body))


def filled(start: str, unit: str, end: str, size: int) -> str:
    """A body of about this size, in which a part is repeated."""
    return start + unit * ((size - len(start) - len(end)) // len(unit)) + end


def within_outputs(name: str, value: Any) -> str:
    return json.dumps({"structured_outputs": {name: value}})


LISTS: Final = {
    "tools": ('{"tools":[{}', ",{}", CHAT),
    "response_format": ('{"response_format":[1', ",1", CHAT),
    "structured_outputs": ('{"structured_outputs":{"choice":[""', ',""', CHAT),
    "messages": ('{"messages":[{}', ",{}", CHAT),
    "metadata": ('{"metadata":[[]', ",[]", CHAT),
    "stop": ('{"stop":["a"', ',"a"', CHAT),
    "allowed_token_ids": ('{"allowed_token_ids":[1', ",1", COMPLETION),
    "prompt": ('{"prompt":[[1]', ",[1]", COMPLETION),
    "tool_choice": ('{"tool_choice":[1', ",1", COMPLETION),
}
"""Fields whose list is as long as a body permits, with its start, a further value, and the route."""


@pytest.mark.parametrize("field", LISTS)
def test_an_endless_list_is_refused_after_limited_work(field: str) -> None:
    start, unit, path = LISTS[field]
    end = "]}}" if "choice" in start and field == "structured_outputs" else "]}"
    with Work():
        refused = answer_to(filled(start, unit, end, MIB), path)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field), refused.text[:300]


@pytest.mark.parametrize(
    ("start", "unit", "path"),
    [
        LISTS["tools"],
        ('{"tools":[{}', ",{}", COMPLETION),
        LISTS["tool_choice"],
        ('{"prompt":"a', "a", COMPLETION),
    ],
    ids=["tools of a chat", "tools of a completion", "numbers", "a text"],
)
def test_a_body_of_sixteen_mebibytes_is_refused_unless_it_has_token_ids(
    start: str, unit: str, path: str
) -> None:
    end = '"}' if unit == "a" else "]}"
    with Work():
        answer = answer_to(filled(start, unit, end, 16 * MIB), path)
    assert answer.status_code == 413
    assert "larger than 1048576 bytes" in answer.json()["error"]["message"]


BRANCHES: Final = ("a|", "|", "a?", "(a*)*")
"""Parts of regular expressions that multiply what a compiler or a matcher has to do."""


@pytest.mark.parametrize("part", BRANCHES)
@pytest.mark.parametrize(
    "place", ["regex", "whitespace_pattern", "json", "grammar", "rule", "response_format"]
)
def test_too_many_branches_are_refused_after_limited_work(part: str, place: str) -> None:
    regex = filled("(", part, ")*", 50_000)
    constraints: dict[str, Any] = {
        "json": {"pattern": regex},
        "grammar": f"start: /{regex}/",
        "rule": "root ::= " + regex.replace("a", '"a" '),
    }
    if place == "response_format":
        field, body = place, json.dumps(of_content({"patternProperties": {regex: {}}}))
    else:
        name = "grammar" if place == "rule" else place
        field, body = (
            f"structured_outputs.{name}",
            within_outputs(name, constraints.get(place, regex)),
        )
    with Work():
        answer = answer_to(body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field)
    assert "more than 200 of the signs | ? * +" in error["message"]


WORDS: Final = " ".join(f"a{number:x}" for number in range(12_000))
OTHERS: Final[dict[str, tuple[Callable[[], str], str | None]]] = {
    "groups of many rules": (
        lambda: within_outputs("grammar", f"root ::= {'(' * 999}{WORDS}{')' * 999}"),
        "structured_outputs.grammar",
    ),
    "repetitions of many rules": (
        lambda: within_outputs("grammar", f"root ::= ({WORDS}){'{2}' * 15_000}"),
        "structured_outputs.grammar",
    ),
    "branches of several rules": (
        lambda: within_outputs("grammar", "\n".join(f"r{number} ::= {'r0|' * 30}" for number in range(900))),
        "structured_outputs.grammar",
    ),
    "branches of several patterns": (
        lambda: json.dumps(of_content({"anyOf": [{"pattern": "a?" * 100}] * 6})),
        "response_format",
    ),
    "factors": (lambda: within_outputs("regex", "a" + "{999999999}" * 10_000), "structured_outputs.regex"),
    "values as text": (lambda: json.dumps(of_text([0] * 30_000)), "structured_outputs.structural_tag"),
    "values of several fields": (
        lambda: json.dumps({"metadata": [0] * 15_000, "logit_bias": [0] * 15_000}),
        "logit_bias",
    ),
    "levels of a schema": (
        lambda: '{"response_format":' + '{"$ref":"a","b":' * 600 + "1" + "}" * 601,
        "response_format",
    ),
    "levels of messages": (lambda: '{"messages":' + "[" * 500 + "]" * 500 + "}", "messages"),
    "names": (lambda: "{" + ",".join(f'"{number:x}":0' for number in range(100_000)) + "}", "0"),
    "129 tools": (lambda: json.dumps({"tools": [{}] * 129}), "tools"),
    "choices": (lambda: '{"n": 129}', "n"),
    "a long stop text": (lambda: json.dumps({"stop": "a" * 257}), "stop"),
    "bad words": (lambda: json.dumps({"bad_words": ["a" * 257]}), "bad_words"),
    "log-probabilities": (lambda: '{"top_logprobs": 21}', "top_logprobs"),
    "all log-probabilities": (lambda: '{"prompt_logprobs": -1}', "prompt_logprobs"),
    "brackets": (lambda: "[" * MIB, None),
    "braces": (lambda: filled("[", '{"a":', "", MIB), None),
    "digits": (lambda: '{"seed":' + "1" * (MIB - 16) + "}", None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_worst_body_of_a_shape_is_refused_after_limited_work(name: str) -> None:
    body, field = OTHERS[name]
    with Work():
        answer = answer_to(body())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text[:300]


def test_the_answers_of_several_prompts_are_limited_together() -> None:
    answer = answer_to(json.dumps({"prompt": ["a", "b"], "n": 65}), COMPLETION)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_token_ids_do_not_permit_other_fields_to_be_large() -> None:
    assert answer_to(filled('{"user":"', "a", '","prompt":[1]}', 2 * MIB), COMPLETION).status_code == 413


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (json.dumps({"prompt": [100_000 + number for number in range(1_500_000)]}), COMPLETION),
        (json.dumps({"prompt": [[1, 2, 3]] * 64, "n": 2}), COMPLETION),
        (json.dumps({"prompt": "a" * (MIB - 100), "echo": True, "logprobs": 5}), COMPLETION),
        (json.dumps({"prompt": "a", "tools": [], "moderation": None}), COMPLETION),
        (json.dumps({"messages": [{"role": "user", "content": "a, [b] {c}" * 50_000}]}), CHAT),
        (json.dumps({"messages": [{"role": "user", "content": "a"}] * 6000}), CHAT),
        (json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]}), CHAT),
        (json.dumps({"messages": [], "user": "anna", "modalities": ["text"], "metadata": {"a": "b"}}), CHAT),
        (json.dumps({"messages": [], "chat_template_kwargs": {"enable_thinking": False}, "top_k": 3}), CHAT),
        (within_outputs("regex", r"(?:(?:a|b)?c+)*" * 50), CHAT),
        (within_outputs("grammar", "\n".join(f'r{n} ::= "a" | r{n + 1} | "b"?' for n in range(160))), CHAT),
    ],
    ids=[
        "token ids",
        "choices",
        "a long text",
        "neutral",
        "a long chat",
        "many messages",
        "parts",
        "ignored",
        "template",
        "regex",
        "grammar",
    ],
)
def test_real_requests_reach_vllm_as_they_are(body: str, path: str) -> None:
    answer = answer_to(body, path)
    assert (answer.status_code, answer.json()) == (200, len(body))


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}, "'image_url'"),
        ({"type": "audio_url", "audio_url": {"url": "http://10.0.0.1/"}}, "'audio_url'"),
        ({"type": "video_url", "video_url": {"url": "http://10.0.0.1/"}}, "'video_url'"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "'input_audio'"),
        ({"type": "input_image", "image_url": "http://10.0.0.1/"}, "'input_image'"),
        ({"type": "image_embeds", "image_embeds": "QQ=="}, "'image_embeds'"),
        ({"type": "prompt_embeds", "data": "QQ=="}, "'prompt_embeds'"),
        ({"image_url": "http://10.0.0.1/"}, "'image_url'"),
        ({"type": "text", "text": "a", "uuid": "1", "image_url": "http://10.0.0.1/"}, "'image_url'"),
        ({"type": "new_in_a_later_version"}, "'new_in_a_later_version'"),
        ({"type": ["text"]}, "['text']"),
        (7, "7"),
    ],
)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_parts_that_are_not_text_are_refused_by_their_type(part: Any, kind: str, role: str) -> None:
    text = {"type": "text", "text": "a"}
    messages = [{"role": "system", "content": "a"}, {"role": role, "content": [text, part]}]
    answer = answer_to(json.dumps({"messages": messages}))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages")
    assert f"messages[1].content[1]: a content part of type {kind} is not supported" in error["message"]


def test_a_single_part_without_a_list_is_refused() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}
    assert answer_to(json.dumps({"messages": [{"role": "user", "content": part}]})).status_code == 400


@pytest.mark.parametrize(
    "name",
    [
        "chat_template",
        "documents",
        "ec_transfer_params",
        "guided_json",
        "guided_regex",
        "kv_transfer_params",
        "logits_processors",
        "media_io_kwargs",
        "mm_payload",
        "mm_processor_kwargs",
        "priority",
        "prompt_embeds",
        "request_id",
        "temprature",
        "use_beam_search",
        "vllm_xargs",
        "x" * 1000,
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_fields_that_are_not_listed_do_not_reach_vllm(name: str, path: str) -> None:
    answer = answer_to(json.dumps({name: 1}), path)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(name[:77])
    assert len(answer.text) < 400


@pytest.mark.parametrize("name", sorted(RESERVED_TEMPLATE_ARGUMENTS))
def test_arguments_of_the_template_that_the_server_sets_are_refused(name: str) -> None:
    answer = answer_to(json.dumps({"chat_template_kwargs": {"enable_thinking": True, name: "a"}}))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "chat_template_kwargs")
    assert f"{name} is set by the server" in error["message"]


@pytest.mark.parametrize("arguments", [{"a": [1]}, {"a": {}}, dict.fromkeys("abcdefghijklmnopq", 1)])
def test_other_arguments_of_the_template_are_few_scalars(arguments: dict[str, Any]) -> None:
    assert answer_to(json.dumps({"chat_template_kwargs": arguments})).status_code == 400
