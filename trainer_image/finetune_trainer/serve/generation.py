"""Requests to the engine, and its events."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Token:
    """One generated token. Its text may be empty, or held back until the next token."""

    text: str


@dataclass(frozen=True)
class GenerationFinished:
    """The answer is complete."""

    text: str
    """Text that was held back until the end."""
    reason: FinishReason
    completion_tokens: int


@dataclass(frozen=True)
class GenerationFailed:
    """The engine failed on this request. The log has the cause."""


Event = Token | GenerationFinished | GenerationFailed


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters and stop conditions."""

    max_tokens: int
    temperature: float = 0
    top_p: float = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    keeps_tags: bool = False
    """Whether the text has the control tokens that separate reasoning from content."""


@dataclass(eq=False)
class EngineRequest:
    """One request in the engine. The model thread calls `send`, which must not block."""

    model: str
    prompt: list[int]
    sampling: Sampling
    send: Callable[[Event], None]
    cancelled: bool = field(default=False, init=False)
    """Whether the client has left."""
