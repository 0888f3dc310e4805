# SPDX-License-Identifier: Apache-2.0
"""Rate limits by token buckets."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class TokenBucket:
    """Admits `rate` events per second, and `burst` at once after a pause."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._at = clock()

    def take(self) -> bool:
        """Take a token; False if there is none."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Buckets:
    """One bucket per key, for the `remembered` most recently used keys."""

    def __init__(
        self, rate: float, burst: float, remembered: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._remembered = remembered
        self._clock = clock
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def take(self, key: Hashable) -> bool:
        """Take a token from the key's bucket; False if there is none."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, self._clock)
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._remembered:
            self._buckets.popitem(last=False)
        return bucket.take()
