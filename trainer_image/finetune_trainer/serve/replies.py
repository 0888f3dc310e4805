# SPDX-License-Identifier: Apache-2.0
"""HTTP responses for a running generation: whole, or as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from finetune_trainer.serve.answer import Answer, Silence
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.generation import GenerationFinished
from finetune_trainer.serve.requestmetrics import CLIENT_CLOSED_REQUEST
from finetune_trainer.serve.responseformats import ResponseFormat
from finetune_trainer.serve.responses import TokenUsage

SILENCE_SECONDS: Final = 10.0
"""Interval of comments in a stream without events. Proxies close connections that are silent for longer."""


async def whole(request: Request, answer: Answer, form: ResponseFormat) -> Response:
    """Return the whole response. Drops the request if the client disconnects."""
    with closing(answer):
        complete = asyncio.create_task(answer.complete())
        disconnected = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({complete, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            if not complete.done():
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            choices = complete.result()
        finally:
            complete.cancel()
            disconnected.cancel()
    body = form.whole(choices, _usage(answer)).model_dump_json()
    return Response(body, media_type="application/json")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
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
