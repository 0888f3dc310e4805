# SPDX-License-Identifier: Apache-2.0
"""Routes of the server."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from finetune_trainer.serve import replies
from finetune_trainer.serve.admission import is_returning
from finetune_trainer.serve.answer import Answer
from finetune_trainer.serve.errors import MODEL_NOT_READY, RequestError
from finetune_trainer.serve.generation import Sampling
from finetune_trainer.serve.names import BASE_NAME
from finetune_trainer.serve.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from finetune_trainer.serve.responseformats import ChatFormat, CompletionFormat, ResponseFormat
from finetune_trainer.serve.responses import ModelCard, ModelList
from finetune_trainer.serve.service import Loaded, Service
from finetune_trainer.serve.servingmetrics import Measurement

if TYPE_CHECKING:
    # It imports torch, which takes seconds.
    from finetune_trainer.serve.constraint import Constraint

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
        return await replies.send_stream(request, answer, form, include_usage=body.include_usage)
    return await replies.send_whole(request, answer, form)


def _seed(seed: int | None, choice: int) -> int | None:
    """A seed for each choice; the first has that of the request."""
    return None if seed is None else (seed + choice + 2**63) % 2**64 - 2**63


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
