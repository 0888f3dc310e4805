# SPDX-License-Identifier: Apache-2.0
"""The answer to one request while the engine makes it: one choice, or several for the same prompt."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from finetune_trainer.serve.admission import Refusal
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.generation import (
    Chosen,
    EngineRequest,
    Event,
    FinishReason,
    GenerationFailed,
    GenerationFinished,
    Sampling,
    Token,
)
from finetune_trainer.serve.serving_metrics import Measurement

if TYPE_CHECKING:
    from finetune_trainer.serve.constraint import Constraint
    from finetune_trainer.serve.engine import Engine


@dataclass(frozen=True)
class ChoiceProgress:
    """A token of a choice, or its end."""

    choice: int
    event: Token | GenerationFinished


@dataclass(frozen=True)
class Silence:
    """No choice has made progress for a while."""

    queued: bool
    """Whether no choice has a token yet."""


@dataclass(frozen=True)
class CompleteChoice:
    """A whole choice."""

    text: str
    reason: FinishReason
    tokens: tuple[Chosen, ...] = ()
    """The tokens with their log-probabilities, if the request has them."""


class Answer:
    """Forwards the engine's events to the event loop. The reader must close it."""

    def __init__(
        self,
        engine: "Engine",
        model: str,
        prompt: list[int],
        samplings: Sequence[Sampling],
        measurement: Measurement,
        *,
        constraints: "Sequence[Constraint | None]" = (),
        seconds: float | None = None,
        returning: bool = False,
    ) -> None:
        """Queue the request. Raises RequestError (429) if it would wait too long.

        Args:
            engine: generates the answer.
            model: served name.
            prompt: token ids.
            samplings: sampling parameters and stop conditions of each choice.
            measurement: measurement of the request.
            constraints: constraint of each choice; none by default.
            seconds: seconds from now after which the answer is ended; None for no limit.
            returning: whether the request was refused before.
        """
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._begun = asyncio.Event()

        def sender(choice: int) -> Callable[[Event], None]:
            def send(event: Event) -> None:
                loop.call_soon_threadsafe(self._receive, choice, event)

            return send

        self.model = model
        self.prompt_tokens = len(prompt)
        self.completion_tokens = 0
        """Tokens of all choices that are complete."""
        self._engine = engine
        self._measurement = measurement
        self._deadline = None if seconds is None else loop.time() + seconds
        self._generations = [
            EngineRequest(model, prompt, sampling, sender(choice), constraint)
            for choice, (sampling, constraint) in enumerate(
                zip(samplings, constraints or [None] * len(samplings), strict=True)
            )
        ]
        self._wait_until = loop.time() + engine.max_wait(seconds, returning=returning)
        refusal = engine.submit(*self._generations, remaining_seconds=seconds, returning=returning)
        if refusal is not None:
            raise self._shed(refusal)
        measurement.prompt(self.prompt_tokens)

    @property
    def choices(self) -> range:
        """Indexes of the choices."""
        return range(len(self._generations))

    async def begin(self, seconds: float | None = None) -> None:
        """Wait for the first event, at most `seconds`. Until then the request can still be refused.

        Raises RequestError: 429 if the request has waited too long for a slot, 504 at the deadline.
        """
        loop = asyncio.get_running_loop()
        until = None if seconds is None else loop.time() + seconds
        waits_until: float | None = self._wait_until
        while not self._begun.is_set():
            wake_at = min((at for at in (until, waits_until, self._deadline) if at is not None), default=None)
            try:
                async with asyncio.timeout_at(wake_at):
                    await self._begun.wait()
            except TimeoutError:
                if wake_at == waits_until:
                    refusal = self._engine.leave(*self._generations)
                    if refusal is not None:
                        raise self._shed(refusal) from None
                    waits_until = None
                elif wake_at == self._deadline:
                    raise self._failed(RequestError.deadline()) from None
                else:
                    return

    async def events(self, silence_seconds: float | None = None) -> AsyncIterator[ChoiceProgress | Silence]:
        """Yield the progress of each choice up to its GenerationFinished, and each silence of this duration.

        Raises RequestError: 500 if the engine fails, 504 at the deadline.
        """
        loop = asyncio.get_running_loop()
        unfinished, queued = len(self._generations), True
        while unfinished:
            silent_at = None if silence_seconds is None else loop.time() + silence_seconds
            wake_at = min((at for at in (silent_at, self._deadline) if at is not None), default=None)
            try:
                async with asyncio.timeout_at(wake_at):
                    choice, event = await self._events.get()
            except TimeoutError:
                if wake_at == self._deadline:
                    raise self._failed(RequestError.deadline()) from None
                yield Silence(queued)
                continue
            if isinstance(event, GenerationFailed):
                message = "The model failed on this request: see the server's log for the cause."
                raise self._failed(RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, message))
            self._measurement.token(choice)
            queued = False
            if isinstance(event, GenerationFinished):
                unfinished -= 1
                self.completion_tokens += event.completion_tokens
            yield ChoiceProgress(choice, event)

    async def complete(self) -> list[CompleteChoice]:
        """Return the whole choices. Raises RequestError as `begin` and `events`."""
        await self.begin()
        texts: list[list[str]] = [[] for _ in self.choices]
        tokens: list[list[Chosen]] = [[] for _ in self.choices]
        reasons: dict[int, FinishReason] = {}
        async for progress in self.events():
            assert isinstance(progress, ChoiceProgress)  # noqa: S101 - without a duration there is no silence
            choice, event = progress.choice, progress.event
            texts[choice].append(event.text)
            if event.chosen is not None:
                tokens[choice].append(event.chosen)
            if isinstance(event, GenerationFinished):
                reasons[choice] = event.reason
        return [
            CompleteChoice("".join(texts[choice]), reasons[choice], tuple(tokens[choice]))
            for choice in self.choices
        ]

    def _receive(self, choice: int, event: Event) -> None:
        self._events.put_nowait((choice, event))
        self._begun.set()

    def _shed(self, refusal: Refusal) -> RequestError:
        self._measurement.shed(refusal.reason)
        return RequestError.overloaded(refusal)

    def _failed(self, error: RequestError) -> RequestError:
        self._measurement.failure = error.status
        return error

    def close(self) -> None:
        """Release the slots in the engine."""
        for generation in self._generations:
            self._engine.cancel(generation)
