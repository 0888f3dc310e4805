"""What the routes ask of the engine, and what comes back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Token:
    """One token was generated; its text may be empty or wait for the next one."""

    text: str


@dataclass(frozen=True)
class GenerationFinished:
    """The answer is complete."""

    text: str
    """Text that was held back until now."""
    reason: FinishReason
    completion_tokens: int


@dataclass(frozen=True)
class GenerationFailed:
    """The engine could not go on with this request; the log has the cause."""


Event = Token | GenerationFinished | GenerationFailed


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when they end."""

    max_tokens: int
    temperature: float = 0
    top_p: float = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(eq=False)
class Generation:
    """One request in the engine; `send` is called by the model thread and must not block."""

    model: str
    prompt: list[int]
    sampling: Sampling
    send: Callable[[Event], None]
    cancelled: bool = field(default=False, init=False)
    """Set when nobody waits for the answer any more."""
