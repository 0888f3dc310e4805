"""Wait with a deadline while other work continues."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from tools.bench.errors import BenchError
from tools.bench.operator.workload import is_done

T = TypeVar("T")

POLL_SECONDS: Final = 0.1
STUCK_SECONDS: Final = 60.0
"""Limit for a step that does not grow with the number of runs."""
SECONDS_PER_RUN: Final = 0.1
"""Far more than an operator needs to read a run with its children and to reconcile it."""


def patience(runs: int) -> float:
    """Seconds until an operator that starts with `runs` FineTuneJobs counts as stuck, not slow."""
    return STUCK_SECONDS + runs * SECONDS_PER_RUN


async def until(get: Callable[[], Awaitable[T | None]], seconds: float, failure: str) -> T:
    """The first true value of `get`, called every POLL_SECONDS.

    Raises:
        BenchError: `failure`, when there was none after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := await get()):
        if time.monotonic() > deadline:
            raise BenchError(failure)
        await asyncio.sleep(POLL_SECONDS)
    return value


async def until_done(
    cluster: KubernetesClient, kind: str, namespace: str, name: str, *, seconds: float, failure: str
) -> Manifest:
    """The object, as soon as it is Ready.

    Raises:
        BenchError: `failure`, when it was not after `seconds`.
    """

    async def get() -> Manifest | None:
        obj = await cluster.get(KIND_TYPES[kind], namespace, name)
        return obj if obj is not None and is_done(obj) else None

    return await until(get, seconds, failure)


@contextlib.asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` until the end of the block, and raise there what one of them raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for each in ended:
        if isinstance(each, Exception):
            raise each
