# SPDX-License-Identifier: Apache-2.0
"""An event loop that skips waiting times, so that tests of hours are fast and deterministic."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

LIMIT = 1_000_000
"""Seconds of the loop's clock after which a test counts as stuck."""


class _Skipping(selectors.SelectSelector):
    """Advances the clock by the waiting time instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self.now += timeout
        return super().select(0 if timeout is not None else None)


class _SkippingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test to its end without waiting."""
    loop = _SkippingLoop()
    try:
        loop.run_until_complete(asyncio.wait_for(test, LIMIT))
    finally:
        loop.close()


def clock() -> float:
    """Seconds since the start of the test, by the loop's clock."""
    return asyncio.get_running_loop().time()
