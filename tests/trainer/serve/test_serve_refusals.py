# SPDX-License-Identifier: Apache-2.0
"""Every refusal has the shape of the OpenAI API and names the invalid field."""

from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.routing import APIRoute

from finetune_trainer.serve.routes import routes
from finetune_trainer.serve.service import Service
from tests.trainer.serve.endpoint import Endpoint, serve_config

USER = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}

REFUSED = [
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": [USER, {"role": "bot", "content": "x"}]}, "messages[1].role", "'assistant'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "Field required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "Field required"),
    (
        {"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "1"}]},
        "messages",
        "calls of tools",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
        "'image_url' is not supported",
    ),
    ({"messages": [{"role": "user", "content": "x " * 900}]}, "messages", "512 tokens"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 600}, "max_tokens", "at most"),
    ({"max_completion_tokens": 600}, "max_completion_tokens", "at most"),
    ({"max_tokens": "x"}, "max_tokens", "valid integer"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, None, "max_completion_tokens only"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"temperature": 5}, "temperature", "less than or equal to 2"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_p": 2}, "top_p", "less than or equal to 1"),
    ({"seed": 2**64}, "seed", "less than"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 5}, "n", "at most 4"),
    ({"n": 129}, "n", "less than or equal to 128"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4 items"),
    ({"stop": ""}, "stop[0]", "at least 1 character"),
    ({"tools": [TOOL]}, "tools", "whose engine is VLLM"),
    ({"tool_choice": "auto"}, None, "only allowed with tools"),
    ({"top_logprobs": 2}, None, "logprobs=true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"presence_penalty": 0.5}, "presence_penalty", "0.5 is not supported"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    ({"stream_options": {"include_usage": True}}, None, "stream=true"),
    ({"extra_body": {"top_k": 5}}, "top_k", "unknown field"),
]


@pytest.mark.parametrize(("change", "param", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_chat_that_cannot_be_answered_is_refused_with_its_field(
    endpoint: Endpoint, change: dict[str, Any], param: str | None, message: str
) -> None:
    request: dict[str, Any] = {"model": "base", "messages": [USER], **change}

    with pytest.raises(openai.BadRequestError) as refused:
        endpoint.openai.chat.completions.create(**request)

    assert message in refused.value.message
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ([], "one list of token ids"),
        (["one", "two"], "several requests"),
        ([[1, 2]], "several requests"),
        ([5, 512], "below 512"),
        ([5, -1], "one list of token ids"),
        (None, "Field required"),
    ],
)
def test_a_prompt_that_is_no_prompt_is_refused(endpoint: Endpoint, prompt: Any, message: str) -> None:
    answer = endpoint.http.post("/v1/completions", json={"model": "base", "prompt": prompt})

    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "prompt"


def test_a_completion_has_no_logprobs(endpoint: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError, match="not supported") as refused:
        endpoint.openai.completions.create(model="base", prompt="a", logprobs=1)

    assert refused.value.param == "logprobs"


def test_a_completion_has_no_schema(endpoint: Endpoint) -> None:
    body = {"model": "base", "prompt": "a", "response_format": {"type": "json_object"}}
    answer = endpoint.http.post("/v1/completions", json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")


def test_a_prompt_longer_than_the_context_has_its_own_code(endpoint: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        endpoint.openai.completions.create(model="base", prompt=[5] * 512)

    assert refused.value.code == "context_length_exceeded"


def test_an_unknown_model_is_not_found_and_the_served_ones_are_named(endpoint: Endpoint) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        endpoint.openai.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}])

    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"
    assert "base, tickets.v1, summaries" in refused.value.message
    with pytest.raises(openai.NotFoundError):
        endpoint.openai.models.retrieve("gpt-4")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/drain", "/shutdown", "/quit"])
def test_no_client_of_the_service_can_take_the_server_out_of_it(
    endpoint: Endpoint, method: str, path: str
) -> None:
    answer = endpoint.http.request(method, path)

    assert answer.status_code == 404
    assert endpoint.health() == 200


def test_the_server_has_the_routes_of_the_api_and_those_of_the_cluster(root: Path) -> None:
    found = {
        (method, route.path)
        for route in routes(Service(serve_config(root))).routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }

    assert found == {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{name:path}"),
        ("GET", "/health"),
        ("GET", "/metrics"),
    }


def test_fields_without_effect_and_neutral_values_are_accepted(endpoint: Endpoint) -> None:
    answer = endpoint.openai.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=2,
        n=1,
        logprobs=False,
        presence_penalty=0,
        response_format={"type": "text"},
        stop=None,
        temperature=None,
        tools=[],
        user="someone",
    )

    assert answer.usage is not None


@pytest.mark.parametrize(
    ("request_line", "content", "status", "message"),
    [
        ("POST /v1/chat/completions", b"{", 400, "Invalid JSON"),
        ("POST /v1/chat/completions", b"[1]", 400, "object"),
        ("POST /v1/completions", b'{"model": "base"}', 400, "prompt: Field required"),
        ("POST /v1/completions", b" " * (1024 * 1024 + 1), 413, "larger than"),
        ("POST /v1/embeddings", b"{}", 404, "POST /v1/embeddings"),
        ("GET /v1/completions", None, 405, "GET /v1/completions"),
        ("GET /docs", None, 404, "GET /docs"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_errors_of_every_kind_have_the_same_shape(
    endpoint: Endpoint, request_line: str, content: bytes | None, status: int, message: str
) -> None:
    answer = endpoint.http.request(*request_line.split(), content=content)

    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
