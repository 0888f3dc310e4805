"""The answer to one request while the engine makes it."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import TYPE_CHECKING

from finetune_trainer.serve.errors import RATE_LIMIT_EXCEEDED, RequestError
from finetune_trainer.serve.generation import (
    EngineRequest,
    Event,
    GenerationFailed,
    GenerationFinished,
    Sampling,
    Token,
)
from finetune_trainer.serve.servingmetrics import Measurement

if TYPE_CHECKING:
    from finetune_trainer.serve.engine import Engine


class Answer:
    """Forwards the engine's events to the event loop. The reader must close it."""

    def __init__(
        self,
        engine: "Engine",
        model: str,
        prompt: list[int],
        sampling: Sampling,
        measurement: Measurement,
        *,
        seconds: float | None = None,
    ) -> None:
        """Queue the request. Raises RequestError (429) if the queue is full.

        Args:
            engine: generates the answer.
            model: served name.
            prompt: token ids.
            sampling: sampling parameters and stop conditions.
            measurement: measurement of the request.
            seconds: seconds from now after which the answer is ended; None for no limit.
        """
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

        def send(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self.model = model
        self.prompt_tokens = len(prompt)
        self._engine = engine
        self._measurement = measurement
        self._deadline = None if seconds is None else loop.time() + seconds
        self._generation = EngineRequest(model, prompt, sampling, send)
        if not engine.submit(self._generation):
            raise RequestError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "The queue is full: try again in a moment, or serve more replicas.",
                code=RATE_LIMIT_EXCEEDED,
                headers={"Retry-After": "1"},
            )
        measurement.prompt(self.prompt_tokens)

    async def events(self) -> AsyncIterator[Token | GenerationFinished]:
        """Yield Tokens, then GenerationFinished.

        Raises RequestError: 500 if the engine fails, 504 at the deadline.
        """
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    event = await self._events.get()
            except TimeoutError:
                raise self._failed(RequestError.deadline()) from None
            if isinstance(event, GenerationFailed):
                message = "The model failed on this request: see the server's log for the cause."
                raise self._failed(RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, message))
            self._measurement.token()
            yield event
            if isinstance(event, GenerationFinished):
                return

    async def complete(self) -> tuple[str, GenerationFinished]:
        """Return the whole text and the final event."""
        texts = []
        async for event in self.events():
            texts.append(event.text)
            if isinstance(event, GenerationFinished):
                return "".join(texts), event
        raise AssertionError("events end with GenerationFinished")

    def _failed(self, error: RequestError) -> RequestError:
        self._measurement.failure = error.status
        return error

    def close(self) -> None:
        """Release the slot in the engine."""
        self._engine.cancel(self._generation)
