# SPDX-License-Identifier: Apache-2.0
"""Waits with a deadline, and work in the background."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from tools.bench.operator.workload import is_done
from tools.bench.page import BenchError

T = TypeVar("T")

POLL_SECONDS: Final = 0.1
STUCK_SECONDS: Final = 60.0
"""Maximum duration of a step that does not grow with the number of runs."""
SECONDS_PER_RUN: Final = 0.1
"""Far more than an operator needs to read and reconcile a run and its children."""


def patience(runs: int) -> float:
    """Seconds after which an operator that starts with `runs` FineTuneJobs counts as stuck."""
    return STUCK_SECONDS + runs * SECONDS_PER_RUN


async def until(
    get: Callable[[], Awaitable[T | None]], seconds: float, failure: str, poll_seconds: float = POLL_SECONDS
) -> T:
    """Call `get` every `poll_seconds`, and return its first true value.

    Raises:
        BenchError: there was none within `seconds`; the message is `failure`.
    """
    deadline = time.monotonic() + seconds
    while not (value := await get()):
        if time.monotonic() > deadline:
            raise BenchError(failure)
        await asyncio.sleep(poll_seconds)
    return value


async def until_done(
    cluster: KubernetesClient, kind: str, namespace: str, name: str, *, seconds: float, failure: str
) -> Manifest:
    """Wait until the object is Ready, and return it.

    Raises:
        BenchError: it was not Ready within `seconds`; the message is `failure`.
    """

    async def get() -> Manifest | None:
        obj = await cluster.get(KIND_TYPES[kind], namespace, name)
        return obj if obj is not None and is_done(obj) else None

    return await until(get, seconds, failure)


@contextlib.asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the coroutines until the end of the block, and re-raise an exception of theirs there."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
