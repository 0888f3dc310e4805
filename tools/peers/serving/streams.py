# SPDX-License-Identifier: Apache-2.0
"""Clients that read streams at the same time, and what they cost the server."""

import asyncio
import json
import time
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple

import httpx

from tools.bench.page import BenchError
from tools.bench.program import descendants, processor_seconds
from tools.peers.serving.servers import KEY, MAX_STREAMS, RunningServer

PAIR_TOKENS: Final = 32
"""Max tokens of each stream of a pair."""
PROMPTS: Final = (
    "The harbour at dawn was quiet, and",
    "A good index makes a query fast because",
    "The three rules of the house are",
    "In the spring of that year the river",
)


@dataclass(frozen=True, slots=True)
class StreamsResult:
    """What some simultaneous streams got."""

    tokens: int
    seconds: float
    first_token_seconds: float
    """Median time to the first token."""
    processor_seconds: float
    """User and system time of the server's processes; 0 if it is a pod."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def cost(self) -> float:
        """Processor seconds per 1,000 tokens."""
        return 1000 * self.processor_seconds / self.tokens


def measure(server: RunningServer, streams: int, max_tokens: int) -> StreamsResult:
    """Read `streams` streams of at most `max_tokens` tokens each.

    Raises:
        BenchError: a request failed.
    """
    before = _processor_seconds(server)
    begin = time.perf_counter()
    found = asyncio.run(_read(server, streams, max_tokens))
    seconds = time.perf_counter() - begin
    return StreamsResult(
        tokens=sum(tokens for tokens, _ in found),
        seconds=seconds,
        first_token_seconds=median(first for _, first in found),
        processor_seconds=_processor_seconds(server) - before,
    )


class StreamsPair(NamedTuple):
    """The same streams from vLLM alone, and with what an endpoint adds."""

    alone: StreamsResult
    endpoint: StreamsResult

    @property
    def ratio(self) -> float:
        """Tokens per second of the endpoint relative to those alone."""
        return self.endpoint.rate / self.alone.rate


def alternating(alone: RunningServer, endpoint: RunningServer, pairs: int) -> list[StreamsPair]:
    """Measure two ways to a server in turns, so that a change of the machine affects both alike.

    Raises:
        BenchError: a request failed.
    """
    measured = []
    for server in (alone, endpoint):
        measure(server, MAX_STREAMS, 2)
    for turn in range(pairs):
        order = (0, 1) if turn % 2 else (1, 0)
        found = {way: measure((alone, endpoint)[way], MAX_STREAMS, PAIR_TOKENS) for way in order}
        measured.append(StreamsPair(found[0], found[1]))
    return measured


def _processor_seconds(server: RunningServer) -> float:
    return 0.0 if server.pid is None else sum(map(processor_seconds, descendants(server.pid)))


async def _read(server: RunningServer, streams: int, max_tokens: int) -> list[tuple[int, float]]:
    headers = {"Authorization": f"Bearer {KEY}", **server.headers}
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, timeout=600, trust_env=False, limits=httpx.Limits()
    ) as client:
        return await asyncio.gather(
            *(
                _stream(client, server.model, f"{number}. {_prompt(number)}", max_tokens)
                for number in range(streams)
            )
        )


def _prompt(number: int) -> str:
    return PROMPTS[number % len(PROMPTS)]


async def _stream(client: httpx.AsyncClient, model: str, prompt: str, max_tokens: int) -> tuple[int, float]:
    """Tokens of one stream, and the seconds until the first."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin, first, chunks, tokens = time.perf_counter(), None, 0, None
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if not answer.is_success:
            raise BenchError(f"{answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            if any(choice.get("text") for choice in event.get("choices", ())):
                chunks += 1
                first = first or time.perf_counter() - begin
    if first is None:
        raise BenchError(f"no token in the answer to {prompt!r}")
    # A server without usage in its streams sends a chunk per token.
    return tokens or chunks, first
