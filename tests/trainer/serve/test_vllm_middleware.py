# SPDX-License-Identifier: Apache-2.0
"""The middleware in vLLM's process, around a server with more routes than clients may reach."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.serving import ServedModel
from finetune_trainer.serve import http_middleware
from finetune_trainer.serve.constraint_limits import check_grammar
from finetune_trainer.serve.http_middleware import Drain
from finetune_trainer.serve.serving_metrics import MeasureRequests, RequestMetrics
from finetune_trainer.serve.vllm.late_requests import Deadlines, RefuseOverload
from finetune_trainer.serve.vllm.lifetime import Lifetime
from finetune_trainer.serve.vllm.middleware import ROUTES, EndpointMiddleware
from tests.trainer.serve.endpoint import serve_config
from tests.trainer.serve.test_serve_apikeys import OTHER, RIGHT, Clock, mount

UNREACHABLE: Final = (
    "/invocations",
    "/tokenize",
    "/metrics",
    "/docs",
    "/load",
    "/version",
    "/v1/load_lora_adapter",
    "/health/",
    "//health",
    "/v1/chat/completions/",
    "/",
)


async def _echo(request: Request) -> JSONResponse:
    return JSONResponse({"path": request.url.path, "id": request.headers.get("x-request-id")})


def vllm() -> Starlette:
    """A server that answers every route."""
    return Starlette(routes=[Route("/{path:path}", _echo, methods=["GET", "POST"])])


class Guarded:
    """A client of the middleware."""

    def __init__(self, engine: Starlette | None = None, **settings: Any) -> None:
        self.clock = Clock()
        self.lifetime = Lifetime(serve_config(Path("models"), **settings), registry=CollectorRegistry())
        self.lifetime.ready = True
        self.lifetime.drain = Drain(10, self.clock)
        app = EndpointMiddleware(engine or vllm(), self.lifetime)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pod")

    def counted(self, model: str, code: int) -> float | None:
        """Number of requests that were counted."""
        labels = {"model": model, "code": str(code)}
        return self.lifetime.metrics.registry.get_sample_value("finetune_serve_requests_total", labels)

    async def answer(
        self, path: str, method: str | None = None, content: str | None = None, **headers: str
    ) -> httpx.Response:
        method = method or ROUTES.get(path, "GET")
        content = "{}" if content is None and method == "POST" else content
        return await self.http.request(method, path, headers=headers, content=content)


@pytest.mark.parametrize("path", ROUTES)
def test_the_routes_of_the_api_reach_vllm(path: str) -> None:
    answer = asyncio.run(Guarded().answer(path))
    assert answer.json()["path"] == path


@pytest.mark.parametrize("path", UNREACHABLE)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_routes_do_not_exist(path: str, method: str) -> None:
    answer = asyncio.run(Guarded().answer(path, method))
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "The server has GET /v1/models, POST /v1/chat/completions" in error["message"]


def test_another_method_is_refused() -> None:
    assert asyncio.run(Guarded().answer("/v1/models", "DELETE")).status_code == 405


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    app = EndpointMiddleware(vllm(), Guarded().lifetime)
    asyncio.run(app({"type": "websocket", "path": "/v1/realtime"}, receive, send))
    assert sent == ["websocket.close"]


def test_keys_are_required_and_rotated_on_every_route_but_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_middleware, "_REFRESH_SECONDS", 0)
    mount(tmp_path, alice=RIGHT)
    guarded = Guarded(api_keys_path=str(tmp_path))

    async def statuses(key: str) -> dict[str, int]:
        return {
            path: (await guarded.answer(path, authorization=f"Bearer {key}")).status_code
            for path in (*ROUTES, "/metrics")
        }

    refused = {path: 200 if path == "/health" else 401 for path in ROUTES}
    assert asyncio.run(statuses(RIGHT)) == {**dict.fromkeys(ROUTES, 200), "/metrics": 404}
    assert asyncio.run(statuses(OTHER)) == {**refused, "/metrics": 404}
    mount(tmp_path, next=OTHER)
    assert asyncio.run(statuses(OTHER)) == {**dict.fromkeys(ROUTES, 200), "/metrics": 404}
    assert asyncio.run(statuses(RIGHT)) == {**refused, "/metrics": 404}


@pytest.mark.parametrize("path", ROUTES)
def test_before_its_models_have_answered_a_server_is_not_ready(path: str) -> None:
    guarded = Guarded()
    guarded.lifetime.ready = False
    answer = asyncio.run(guarded.answer(path))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == "model_not_ready"


def test_a_draining_server_answers_and_then_refuses_before_vllm_fails() -> None:
    guarded = Guarded()

    async def found() -> dict[str, tuple[int, str | None]]:
        answers = {path: await guarded.answer(path) for path in ROUTES}
        return {path: (each.status_code, each.headers.get("connection")) for path, each in answers.items()}

    assert asyncio.run(found()) == dict.fromkeys(ROUTES, (200, None))
    guarded.lifetime.drain.begin()
    assert asyncio.run(found()) == {**dict.fromkeys(ROUTES, (200, "close")), "/health": (503, "close")}
    guarded.clock.now += 10
    assert asyncio.run(found()) == dict.fromkeys(ROUTES, (503, "close"))


async def _slow(request: Request) -> Response:
    """An answer that takes until the client disconnects, or a stream that does so after its first event."""
    if (await request.json())["stream"]:
        return StreamingResponse(_first_event(), media_type="text/event-stream")
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return JSONResponse("ignored")


async def _first_event() -> AsyncIterator[str]:
    yield "data: 1\n\n"
    await asyncio.Event().wait()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_ended_at_its_deadline(*, stream: bool) -> None:
    slow = Starlette(routes=[Route("/{path:path}", _slow, methods=["POST"])])
    guarded = Guarded(slow, request_deadline_seconds=1)
    answer = asyncio.run(guarded.answer("/v1/completions", content=json.dumps({"stream": stream})))
    text = answer.text
    assert guarded.counted("base", 504) == 1
    if stream:
        first, text, *_ = (event.removeprefix("data: ") for event in text.split("\n\n"))
        assert (answer.status_code, first) == (200, "1")
    else:
        assert answer.status_code == 504
    assert json.loads(text)["error"]["code"] == "deadline_exceeded"


class Held:
    """A server that answers when a test permits it."""

    def __init__(self) -> None:
        self.answers = asyncio.Semaphore(0)
        self.asked = asyncio.Event()
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST"])])

    async def _answer(self, _: Request) -> JSONResponse:
        self.asked.set()
        await self.answers.acquire()
        return JSONResponse("answer")


def test_beyond_the_slots_and_the_queue_a_request_is_refused_with_a_time_to_come_again() -> None:
    async def found() -> tuple[list[httpx.Response], httpx.Response]:
        held = Held()
        guarded = Guarded(held.app, max_batch_size=2, max_queue=1)
        body = '{"model": "base"}'
        sent = [asyncio.create_task(guarded.answer("/v1/completions", content=body)) for _ in range(5)]
        refused, _ = await asyncio.wait(sent, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        while len(refused) < 2:
            more, _ = await asyncio.wait(set(sent) - refused, return_when=asyncio.FIRST_COMPLETED)
            refused |= more
        for _ in range(4):
            held.answers.release()
        answers = [await each for each in sent]
        metrics = guarded.lifetime.metrics.registry
        labels = {"model": "base", "reason": "queue_full"}
        assert metrics.get_sample_value("finetune_serve_requests_shed_total", labels) == 2
        assert guarded.counted("base", 429) == 2
        return answers, await guarded.answer("/v1/completions", content=body)

    answers, later = asyncio.run(found())
    assert sorted(each.status_code for each in answers) == [200, 200, 200, 429, 429]
    refused = [each for each in answers if each.status_code == 429]
    assert len({each.headers["retry-after"] for each in refused}) == 2
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert later.status_code == 200


@pytest.mark.parametrize(
    ("deadline", "seconds", "refused"), [(None, 10, 0), (None, 20, 1), (70, 20, 0), (40, 20, 1)]
)
def test_a_request_whose_turn_would_come_too_late_is_refused_at_once(
    deadline: int | None, seconds: int, refused: int
) -> None:
    """Three requests and one slot: the last one would wait for two answers."""
    clock = Clock()

    async def statuses() -> list[int]:
        held = Held()
        app = MeasureRequests(
            RefuseOverload(held.app, 1, 64, deadline, clock), RequestMetrics(CollectorRegistry())
        )
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pod")
        first = asyncio.create_task(http.post("/v1/completions"))
        await held.asked.wait()
        clock.now += seconds
        held.answers.release()
        await first
        waiting = [asyncio.create_task(http.post("/v1/completions")) for _ in range(3)]
        if refused:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [each.result().status_code for each in done] == [429]
        for _ in range(3):
            held.answers.release()
        return [(await each).status_code for each in waiting]

    assert sorted(asyncio.run(statuses())) == [*[200] * (3 - refused), *[429] * refused]


class Endless:
    """A server whose streams end only when the client has disconnected, or after ten seconds."""

    def __init__(self, spec_version: str) -> None:
        self.complete = False
        self._spec_version = spec_version
        self._app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST"])])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app({**scope, "asgi": {"spec_version": self._spec_version}}, receive, send)

    async def _answer(self, _: Request) -> Response:
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        for number in range(1000):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.01)
        self.complete = True


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
def test_a_stream_stops_generating_at_its_deadline(spec_version: str) -> None:
    """Since ASGI 2.4, Starlette notices a disconnect only by an error of `send`."""
    endless = Endless(spec_version)
    deadlines = Deadlines(endless, 0.05)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope = {
        "type": "http",
        "path": "/v1/completions",
        "method": "POST",
        "headers": [],
        "asgi": {"spec_version": spec_version},
    }
    asyncio.run(deadlines(scope, receive, send))

    assert not endless.complete
    assert b"deadline_exceeded" in sent[-1]["body"]
    assert not sent[-1]["more_body"]


async def _complete(request: Request) -> Response:
    body = await request.body()
    return JSONResponse(len(body), status_code=500 if b"broken" in body else 200)


ROUTER: Final = ServedModel(name="router", folder="router")


@pytest.mark.parametrize(
    ("body", "model", "code"),
    [
        ('{"model": "router", "prompt": "a"}', "router", 200),
        ('{"model": "router", "prompt": "broken"}', "router", 500),
        ('{"model": "base", "prompt": "router"}', "base", 200),
        ('{"prompt": "a"}', "base", 200),
        ('{"model": "gpt-4"}', "unknown", 200),
        ('{"model": ["router"]}', "unknown", 200),
        ('["router"]', "unknown", 400),
        ("{", "unknown", 400),
        ("[" * 100_000, "unknown", 400),
    ],
)
def test_a_request_is_counted_for_its_model(body: str, model: str, code: int) -> None:
    engine = Starlette(routes=[Route("/{path:path}", _complete, methods=["POST"])])
    guarded = Guarded(engine, models=(ROUTER,))
    assert guarded.counted("router", 200) == 0
    assert guarded.counted("router", 499) == 0
    answer = asyncio.run(guarded.answer("/v1/completions", content=body))
    assert answer.status_code == code
    assert code == 400 or answer.json() == len(body)
    assert guarded.counted(model, code) == 1
    assert sum(guarded.counted(each, code) or 0 for each in ("base", "router", "unknown")) == 1


def chain(length: int) -> dict[str, Any]:
    """A schema in which each definition is a reference to the next one."""
    definitions = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(length)}
    return {"$defs": {**definitions, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def of_content(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def of_tool(schema: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}


def of_option(schema: Any) -> dict[str, Any]:
    return {"structured_outputs": {"json": schema}}


def of_text(schema: Any) -> dict[str, Any]:
    return {"structured_outputs": {"structural_tag": json.dumps(schema)}}


@pytest.mark.parametrize(
    ("request_of", "field"),
    [
        (of_content, "response_format"),
        (of_tool, "tools"),
        (of_option, "structured_outputs.json"),
        (of_text, "structured_outputs.structural_tag"),
    ],
)
def test_a_schema_that_could_end_vllm_does_not_reach_it(
    request_of: Callable[[Any], dict[str, Any]], field: str
) -> None:
    guarded = Guarded(Starlette(routes=[Route("/{path:path}", _complete, methods=["POST"])]))

    def answer_to(schema: Any) -> httpx.Response:
        body = json.dumps({"model": "base", **request_of(schema)}).replace("$ref", "\\u0024ref")
        return asyncio.run(guarded.answer("/v1/chat/completions", content=body))

    assert answer_to(chain(50)).status_code == 200
    refused = answer_to(chain(3000))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert "too many references" in refused.json()["error"]["message"]
    assert guarded.counted("base", 400) == 1


@pytest.mark.parametrize("part", ['"\\', "[", "/", "{ ", "a {", "Regex( ", "~ 1 .", "a", " "])
def test_the_checks_of_a_grammar_take_linear_time(part: str) -> None:
    """Quadratic time would be minutes. A check that refuses the grammar exits with 1."""
    grammar = f"root ::= a{{{part * (120_000 // len(part))}"
    module = check_grammar.__module__
    script = f"import sys; from {module} import *; check_grammar(sys.stdin.read(), 'a')"
    done = subprocess.run(
        [sys.executable, "-c", script], input=grammar, text=True, timeout=60, check=False, capture_output=True
    )
    assert done.returncode == 0 or "RequestError" in done.stderr


def rules(length: int, of: str) -> str:
    """A grammar in which each rule refers to the next one."""
    following = "".join(f'r{number} {of} "a" r{number + 1}\n' for number in range(length))
    return f'{following}r{length} {of} "b"\n'


def tag_with(grammar: str) -> dict[str, Any]:
    """A structural tag whose content is a grammar."""
    content = {"type": "grammar", "grammar": grammar}
    tag = {"type": "tag", "begin": "<a>", "content": content, "end": "</a>"}
    return {"type": "structural_tag", "format": {"type": "sequence", "elements": [tag]}}


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (f"start: %json {json.dumps(chain(3000))}", "%json is not supported"),
        (f"start: r0\n{rules(5000, ':')}", "more than 1000 rules"),
        (f"root ::= r0\n{rules(5000, '::=')}", "more than 1000 rules"),
    ],
    ids=["schema", "Lark", "EBNF"],
)
@pytest.mark.parametrize(
    ("request_of", "field"),
    [
        (lambda grammar: {"structured_outputs": {"grammar": grammar}}, "structured_outputs.grammar"),
        (lambda grammar: {"response_format": tag_with(grammar)}, "response_format"),
        (lambda grammar: of_text(tag_with(grammar)), "structured_outputs.structural_tag"),
        (
            lambda grammar: {"structured_outputs": {"structural_tag": tag_with(grammar)}},
            "structured_outputs.structural_tag",
        ),
    ],
    ids=["option", "response format", "structural tag as text", "structural tag"],
)
def test_a_grammar_that_could_end_vllm_does_not_reach_it(
    grammar: str, message: str, request_of: Callable[[str], dict[str, Any]], field: str
) -> None:
    body = json.dumps(request_of(grammar))
    answer = asyncio.run(Guarded().answer("/v1/completions", content=body))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= (("a"){10000}){10000}',
        'root ::= ( ( [ab{] { 1 , 2000 } # "\n ("b") ) {2} )\n {1001}',
        'root ::= (Regex("(a\\\\){1001}b"){1000} "c")',
        'start: (/a{1001}/ "}"){1000}',
        'start: ("a"~1..1001 "b") ~ 1000',
        'root ::= r{0,1000}\nr ::= "x" | (s "c"){1,10}\ns ::= [a-z]{1,101} | "(" root ")"',
        'start: r~10001\ns.1: t{101}\nt[lazy]: "a"\nr: s',
    ],
    ids=["EBNF", "blanks", "macro", "expression", "Lark", "rules", "rules in Lark"],
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_grammar_with_too_many_repetitions_does_not_reach_vllm(grammar: str, is_nested: bool) -> None:
    option, tag = {"grammar": grammar}, {"structural_tag": tag_with(grammar)}
    body = json.dumps({"structured_outputs": tag if is_nested else option})
    answer = asyncio.run(Guarded().answer("/v1/completions", content=body))
    assert (answer.status_code, "more than 1000000 repetitions" in answer.text) == (400, True)


def with_properties(*numbers: int) -> dict[str, Any]:
    """A schema of objects with these numbers of properties."""
    objects = [{"type": "object", "properties": {f"p{each}": {} for each in range(n)}} for n in numbers]
    return {"anyOf": objects}


def counted(number: int, **limits: int) -> dict[str, Any]:
    """A schema of an object with this number of properties, and a limit of how many occur."""
    return {"type": "object", "properties": {f"p{each}": {} for each in range(number)}, **limits}


LONG: Final = "a" * (128 * 1024)


@pytest.mark.parametrize(
    ("request_of", "value", "field"),
    [
        (of_content, {"enum": ["a" * 1024] * 128}, "response_format"),
        (of_content, {"enum": [1234567] * 19_900}, "response_format"),
        (of_content, {"type": "string", "pattern": LONG}, "response_format"),
        (of_content, with_properties(501), "response_format"),
        (of_tool, with_properties(*[100] * 26), "tools"),
        (of_content, counted(101, minProperties=1), "response_format"),
        (of_tool, {"anyOf": [counted(50, maxProperties=9)] * 5}, "tools"),
        (of_option, {"enum": [LONG]}, "structured_outputs.json"),
        (of_text, {LONG: 1}, "structured_outputs.structural_tag"),
        (
            lambda text: {"structured_outputs": {"grammar": f"start: {text}"}},
            LONG,
            "structured_outputs.grammar",
        ),
        (lambda text: {"structured_outputs": {"regex": f"{text}+"}}, LONG, "structured_outputs.regex"),
        (lambda text: {"structured_outputs": {"choice": [text, "b"]}}, LONG, "structured_outputs.choice"),
        (of_content, {"pattern": "^((a|bc){1001}d){1000}$"}, "response_format"),
        (of_content, {"patternProperties": {r"(a[(]b{2,2000}){1001}": {}}}, "response_format"),
        (of_content, {"type": "array", "maxItems": 2**31 - 1}, "response_format"),
        (of_content, {"type": "array", "minItems": float("inf")}, "response_format"),
        (lambda text: {"structured_outputs": {"regex": text}}, "(a{9999999}b)", "structured_outputs.regex"),
        (
            lambda text: {"structured_outputs": {"json": {}, "whitespace_pattern": text}},
            "( {9999999}|\n)",
            "structured_outputs.whitespace_pattern",
        ),
        (
            lambda text: of_text({"format": {"type": "regex", "pattern": text}}),
            "(a{9999999}b)",
            "structured_outputs.structural_tag",
        ),
    ],
)
def test_what_vllm_would_compile_for_long_is_refused_by_the_name_of_its_field(
    request_of: Callable[[Any], dict[str, Any]], value: Any, field: str
) -> None:
    body = json.dumps(request_of(value))
    answer = asyncio.run(Guarded().answer("/v1/chat/completions", content=body))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    limits = (
        "more than 131072 characters",
        "one object may have 500",
        "more than 1000000 repetitions",
        "minItems or maxItems is more than 100000",
    )
    assert any(limit in answer.text for limit in limits)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: of_content({"enum": [f"label {number}" for number in range(5000)]}),
        lambda: of_content(with_properties(500)),
        lambda: of_tool(with_properties(*[50] * 40)),
        lambda: of_tool(counted(100, minProperties=1)),
        lambda: of_tool(counted(500, minProperties=0)),
        lambda: of_content({"pattern": r"^(?:[a-z](?:[-a-z]{0,61}[a-z])?\.){1,100}\([a-z]{2,63}\){0,9}$"}),
        lambda: of_content({"pattern": "[(]{1000}a{1000}" * 20, "maxLength": 2**31 - 1}),
        lambda: {"structured_outputs": {"choice": [f"label {number}" for number in range(5000)]}},
        lambda: {"messages": [{"role": "user", "content": LONG * 2}]},
    ],
)
def test_large_schemas_of_real_requests_and_long_prompts_reach_vllm(
    request_of: Callable[[], dict[str, Any]],
) -> None:
    engine = Starlette(routes=[Route("/{path:path}", _complete, methods=["POST"])])
    body = json.dumps(request_of())
    assert asyncio.run(Guarded(engine).answer("/v1/chat/completions", content=body)).status_code == 200


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= (("(" [a-z]{1,999} ")"){1,999}) # {9999999}\nnext ::= "a{9999999}" [{9999999}]',
        'start: "(" (/\\({1,999}/ "b") ~ 1..999',
        'root ::= "[" (root ","){0,999} "]" | a{1,999} | b{1,999}\na ::= "a"{999}\nb ::= "{" b*',
    ],
)
def test_repetitions_are_not_counted_in_texts_and_comments(grammar: str) -> None:
    engine = Starlette(routes=[Route("/{path:path}", _complete, methods=["POST"])])
    body = json.dumps({"structured_outputs": {"structural_tag": tag_with(grammar)}})
    assert asyncio.run(Guarded(engine).answer("/v1/completions", content=body)).status_code == 200


@pytest.mark.parametrize("of", [":", "::="])
def test_a_grammar_of_some_hundred_rules_reaches_vllm(of: str) -> None:
    engine = Starlette(routes=[Route("/{path:path}", _complete, methods=["POST"])])
    body = json.dumps({"structured_outputs": {"grammar": rules(900, of)}})
    assert asyncio.run(Guarded(engine).answer("/v1/completions", content=body)).status_code == 200


@pytest.mark.parametrize("text", ["{", '{"$ref": "#/a", "$ref": "#/b"}', "[" * 100_000])
def test_a_schema_whose_text_parsers_read_differently_is_refused(text: str) -> None:
    body = json.dumps({"structured_outputs": {"json": text}})
    answer = asyncio.run(Guarded().answer("/v1/completions", content=body))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "structured_outputs.json")


def test_vllm_gets_a_body_in_parts_as_a_whole_and_then_the_disconnect() -> None:
    got: list[Any] = []
    parts = [
        {"type": "http.request", "body": b'{"model": ', "more_body": True},
        {"type": "http.request", "body": b'"base"}'},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return parts.pop(0)

    async def engine(_: Any, receive: Any, __: Any) -> None:
        got.extend([await receive(), await receive()])

    asyncio.run(call_engine(engine, receive))
    assert got == [
        {"type": "http.request", "body": b'{"model": "base"}', "more_body": False},
        {"type": "http.disconnect"},
    ]


def test_a_request_whose_client_disconnects_within_its_body_does_not_reach_vllm() -> None:
    parts = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return parts.pop(0)

    async def engine(*_: Any) -> None:
        raise AssertionError

    assert asyncio.run(call_engine(engine, receive)) == 1


async def call_engine(engine: Any, receive: Any) -> float | None:
    """Pass a request to an engine. Returns the number of requests that were counted as disconnected."""
    guarded = Guarded(engine)
    scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
    app = EndpointMiddleware(engine, guarded.lifetime)
    await app(scope, receive, receive)
    return sum(guarded.counted(model, 499) or 0 for model in ("base", "unknown"))


def test_refused_generation_requests_are_counted_and_other_routes_are_not(tmp_path: Path) -> None:
    mount(tmp_path, alice=RIGHT)
    guarded = Guarded(api_keys_path=str(tmp_path))
    for path in ROUTES:
        asyncio.run(guarded.answer(path))
    assert guarded.counted("unknown", 401) == 2


def test_vllm_and_the_client_get_the_same_request_id() -> None:
    answer = asyncio.run(Guarded().answer("/v1/models"))
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.json()["id"] == answer.headers["x-request-id"]


def test_a_request_keeps_its_valid_id() -> None:
    answer = asyncio.run(Guarded().answer("/v1/models", **{"X-Request-Id": "shop-17.a_b"}))
    assert answer.json()["id"] == answer.headers["x-request-id"] == "shop-17.a_b"


@pytest.mark.parametrize("wrong", ["", "a b", "a\\nb", "x" * 129])
def test_an_invalid_id_is_replaced(wrong: str) -> None:
    answer = asyncio.run(Guarded().answer("/v1/models", **{"X-Request-Id": wrong}))
    assert answer.headers["x-request-id"] != wrong
    assert answer.json()["id"] == answer.headers["x-request-id"]


def test_errors_have_a_request_id_too(tmp_path: Path) -> None:
    mount(tmp_path, alice=RIGHT)
    guarded = Guarded(api_keys_path=str(tmp_path))
    for path, status in (("/metrics", 404), ("/v1/models", 401)):
        answer = asyncio.run(guarded.answer(path))
        assert (answer.status_code, len(answer.headers["x-request-id"])) == (status, 32)


def test_in_a_pod_the_server_cannot_connect_to_metadata_services() -> None:
    module, config = EndpointMiddleware.__module__, serve_config(Path("models"))
    script = (
        f"import socket; from {module} import EndpointMiddleware; EndpointMiddleware(None);"
        "socket.create_connection(('169.254.169.254', 80), 1)"
    )
    environment = {**os.environ, CONFIG_ENV: config.to_json()}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert "AddressRefused: [Errno 13] 169.254.169.254 is link-local" in done.stderr


def test_the_middleware_imports_only_what_vllm_has() -> None:
    """vLLM's process has no PEFT, and another version of transformers."""
    module = EndpointMiddleware.__module__
    script = f"import sys, {module}; print(*{{each.partition('.')[0] for each in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "starlette" in imported
    assert not imported & {"accelerate", "numpy", "peft", "torch", "transformers", "trl", "uvicorn"}
