# SPDX-License-Identifier: Apache-2.0
"""Requests to the engine, and its events."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    # It imports torch, which takes seconds.
    from finetune_trainer.serve.constraint import Constraint

FinishReason = Literal["stop", "length"]
ChatFinishReason = FinishReason | Literal["tool_calls"]
"""Why the answer to a chat ended. With complete calls of tools, `stop` becomes `tool_calls`."""


@dataclass(frozen=True)
class Candidate:
    """A token that could come next."""

    text: str
    logprob: float
    """Natural logarithm of its probability, before temperature and top_p."""


@dataclass(frozen=True)
class Chosen(Candidate):
    """A token of an answer, with the most probable ones at its place."""

    top: tuple[Candidate, ...]


@dataclass(frozen=True)
class Token:
    """One generated token. Its text may be empty, or held back until the next token."""

    text: str
    chosen: Chosen | None = None
    """Set if the request has log-probabilities."""


@dataclass(frozen=True)
class GenerationFinished:
    """The answer is complete."""

    text: str
    """Text that was held back until the end."""
    reason: FinishReason
    completion_tokens: int
    chosen: Chosen | None = None
    """The last token. Set if the request has log-probabilities."""


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
    top_logprobs: int | None = None
    """Number of most probable tokens to return with each token. None: no log-probabilities at all."""


@dataclass(eq=False)
class EngineRequest:
    """One answer in the engine. The model thread calls `send`, which must not block."""

    model: str
    prompt: list[int]
    sampling: Sampling
    send: Callable[[Event], None]
    constraint: "Constraint | None" = None
    """Restricts the tokens of the answer. None: any token."""
    cancelled: bool = field(default=False, init=False)
    """Whether the client has left."""
