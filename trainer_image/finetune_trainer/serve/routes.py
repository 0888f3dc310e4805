# SPDX-License-Identifier: Apache-2.0
"""Routes of the server, and their HTTP responses: whole, or as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from finetune_trainer.serve.admission import is_returning
from finetune_trainer.serve.answer import Answer, Silence
from finetune_trainer.serve.errors import MODEL_NOT_READY, RequestError
from finetune_trainer.serve.generation import GenerationFinished, Sampling
from finetune_trainer.serve.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from finetune_trainer.serve.response_formats import ChatFormat, CompletionFormat, ResponseFormat
from finetune_trainer.serve.responses import ModelCard, ModelList, TokenUsage
from finetune_trainer.serve.served_models import BASE_NAME
from finetune_trainer.serve.service import Loaded, Service
from finetune_trainer.serve.serving_metrics import Measurement

if TYPE_CHECKING:
    from finetune_trainer.serve.constraint import Constraint


SILENCE_SECONDS: Final = 10.0
"""Interval of comments in a stream without events. Proxies close connections that are silent for longer."""


DoneT = TypeVar("DoneT")


async def send_whole(request: Request, answer: Answer, form: ResponseFormat) -> Response:
    """Return the whole response. If the client disconnects, drop the request and raise ClientDisconnect."""
    with closing(answer):
        choices = await _unless_disconnected(request, answer.complete())
    body = form.whole(choices, _usage(answer)).model_dump_json()
    return Response(body, media_type="application/json")


async def send_stream(
    request: Request, answer: Answer, form: ResponseFormat, *, include_usage: bool
) -> Response:
    """Return the streamed response when it begins, or after SILENCE_SECONDS.

    Only before that can it be refused so that clients try again: they do not after a status of success. If
    the client disconnects before, drop the request and raise ClientDisconnect.
    """
    with ExitStack() as unless_begun:
        unless_begun.callback(answer.close)
        await _unless_disconnected(request, answer.begin(SILENCE_SECONDS))
        unless_begun.pop_all()
    return _EventStream(answer, form, include_usage=include_usage)


async def _unless_disconnected(request: Request, work: Coroutine[None, None, DoneT]) -> DoneT:
    """The result of `work`. If the client disconnects, it is cancelled, and ClientDisconnect raised."""
    done = asyncio.create_task(work)
    disconnected = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({done, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientDisconnect
        return done.result()
    finally:
        done.cancel()
        disconnected.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Streamed response. Releases its slots in the engine however the stream ends."""

    def __init__(self, answer: Answer, form: ResponseFormat, *, include_usage: bool) -> None:
        super().__init__(
            _events(answer, form, include_usage=include_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until it ends or the client disconnects."""
        with closing(self._answer):
            await super().__call__(scope, receive, send)


async def _events(answer: Answer, form: ResponseFormat, *, include_usage: bool) -> AsyncIterator[str]:
    for choice in answer.choices:
        start = form.start(choice)
        if start is not None:
            yield _event(start.model_dump_json())
    try:
        async for progress in answer.events(SILENCE_SECONDS):
            if isinstance(progress, Silence):
                yield _comment("queued" if progress.queued else "generating")
                continue
            choice, event = progress.choice, progress.event
            chunk = form.part(choice, event.text, event.chosen)
            if chunk is not None:
                yield _event(chunk.model_dump_json())
            if isinstance(event, GenerationFinished):
                yield _event(form.end(choice, event.reason).model_dump_json())
        if include_usage:
            yield _event(form.usage(_usage(answer)).model_dump_json())
    except RequestError as error:
        # The status has been sent. Clients of the API read errors from the events.
        yield _event(_json(error.body()))
        return
    yield _event("[DONE]")


def _event(data: str) -> str:
    return f"data: {data}\n\n"


def _comment(text: str) -> str:
    """A line that clients of server-sent events ignore."""
    return f": {text}\n\n"


def _json(body: Mapping[str, object]) -> str:
    return json.dumps(body, ensure_ascii=False)


def _usage(answer: Answer) -> TokenUsage:
    """Token counts of a complete answer. The prompt counts once."""
    return TokenUsage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        total_tokens=answer.prompt_tokens + answer.completion_tokens,
    )


NEUTRAL: Final = 1.0
"""Temperature and top_p that change no probability."""
_MAX_BODY_BYTES: Final = 1024 * 1024

RequestT = TypeVar("RequestT", bound=GenerationRequest)


def routes(service: Service) -> APIRouter:
    """Build all routes of one server."""
    router = APIRouter()
    created = int(time.time())

    def cards() -> tuple[ModelCard, ...]:
        length = service.loaded().prompts.context_length
        return tuple(
            ModelCard(
                id=name,
                created=created,
                parent=BASE_NAME if name != BASE_NAME and BASE_NAME in service.names else None,
                max_model_len=length,
            )
            for name in service.names
        )

    @router.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=cards())

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        service.check_model(name)
        return next(card for card in cards() if card.id == name)

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await _read(request, ChatCompletionRequest)
        loaded = _begin(service, request, body)
        prompts, tools = loaded.prompts, body.offered_tools
        prompt = await service.tokenize(
            partial(prompts.of_chat, body.messages, body.model, body.chat_template_kwargs, tools)
        )
        readers = await service.tokenize(partial(prompts.message_readers, prompt, body.model, tools, body.n))
        form = ChatFormat(body.model, readers)
        constraints = await _constraints(service, body, prompt)
        return await _generate(service, request, body, prompt, form, constraints=constraints)

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await _read(request, CompletionRequest)
        loaded = _begin(service, request, body)
        prompt = await service.tokenize(partial(loaded.prompts.of_text, body.prompt))
        return await _generate(service, request, body, prompt, CompletionFormat(body.model))

    @router.get("/health")
    async def health() -> JSONResponse:
        if service.ready and not service.drain.active:
            return JSONResponse({"status": "ok"})
        reason = "The server is draining." if service.ready else "The model is still loading."
        error = RequestError(HTTPStatus.SERVICE_UNAVAILABLE, reason, code=MODEL_NOT_READY)
        return JSONResponse(error.body(), error.status)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router


async def _read(request: Request, kind: type[RequestT]) -> RequestT:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MAX_BODY_BYTES:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The request body is larger than {_MAX_BODY_BYTES} bytes.",
            )
    try:
        return kind.model_validate_json(bytes(content))
    except ValidationError as error:
        raise RequestError.unreadable(error) from error


def _begin(service: Service, request: Request, body: GenerationRequest) -> Loaded:
    service.check_model(body.model)
    Measurement.of(request.scope).model = body.model
    if body.n > service.max_choices:
        raise RequestError.invalid(
            f"n is {body.n}, and a replica of this server answers {service.max_choices} requests at a time:"
            f" set it to at most {service.max_choices}.",
            "n",
        )
    return service.loaded()


async def _constraints(
    service: Service, body: ChatCompletionRequest, prompt: list[int]
) -> "list[Constraint]":
    """The constraint of each choice; none if the answer may be any text."""
    schema = body.schema_of_content
    if schema is None:
        return []
    return await service.tokenize(lambda: service.grammars.constraints(schema, prompt, body.model, body.n))


async def _generate(
    service: Service,
    request: Request,
    body: GenerationRequest,
    prompt: list[int],
    form: ResponseFormat,
    *,
    constraints: "Sequence[Constraint]" = (),
) -> Response:
    loaded, default, measurement = service.loaded(), service.default_sampling, Measurement.of(request.scope)
    sampling = Sampling(
        max_tokens=loaded.prompts.answer_tokens(prompt, body),
        temperature=_first(body.temperature, default.temperature, NEUTRAL),
        top_p=_first(body.top_p, default.top_p, NEUTRAL),
        seed=None,
        stop=tuple(body.stop),
        keeps_tags=form.separates_reasoning,
        top_logprobs=body.num_top_logprobs,
    )
    samplings = [replace(sampling, seed=_seed(body.seed, choice)) for choice in range(body.n)]
    deadline = service.deadline_seconds
    left = None if deadline is None else measurement.remaining(deadline)
    answer = Answer(
        loaded.engine,
        body.model,
        prompt,
        samplings,
        measurement,
        constraints=constraints,
        seconds=left,
        returning=is_returning(request.headers),
    )
    if body.stream:
        return await send_stream(request, answer, form, include_usage=body.include_usage)
    return await send_whole(request, answer, form)


def _seed(seed: int | None, choice: int) -> int | None:
    """A seed for each choice; the first has that of the request."""
    return None if seed is None else (seed + choice + 2**63) % 2**64 - 2**63


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
