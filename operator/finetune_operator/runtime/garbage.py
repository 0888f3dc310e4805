# SPDX-License-Identifier: Apache-2.0
"""Garbage collection that stops the event loop only briefly, however many objects the caches hold.

A full collection of Python walks over every object, and nothing else runs meanwhile. Almost all objects are
the caches', which reference counting frees. Each full collection therefore exempts what survived it, so
that the next one walks over newer objects only. A complete collection once a day frees exempted cycles.
"""

import asyncio
import gc
from typing import Any, Final

COMPLETE_SECONDS: Final = 24 * 3600
"""Time between two complete collections, which take about a second per million objects."""
_OLDEST_GENERATION: Final = 2


def exempt_survivors() -> None:
    """Exempt the present objects from garbage collection, and from now on the survivors of each full one."""
    gc.freeze()
    if _exempt not in gc.callbacks:
        gc.callbacks.append(_exempt)


def _exempt(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == _OLDEST_GENERATION:
        gc.freeze()


def collect_completely() -> None:
    """Collect among all objects, also the exempted ones."""
    gc.unfreeze()
    gc.collect()


async def collect_completely_every_day() -> None:
    """Run endlessly."""
    while True:
        await asyncio.sleep(COMPLETE_SECONDS)
        collect_completely()
