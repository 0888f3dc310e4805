# SPDX-License-Identifier: Apache-2.0
"""HTTP responses for a running generation: whole, or as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import ExitStack, closing
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from finetune_trainer.serve.answer import Answer, Silence
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.generation import GenerationFinished
from finetune_trainer.serve.responseformats import ResponseFormat
from finetune_trainer.serve.responses import TokenUsage

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
