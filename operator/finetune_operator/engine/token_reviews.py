# SPDX-License-Identifier: Apache-2.0
"""Reviews of tokens by the API server, for servers of this process whose callers have one.

Results are kept by the hash of the token, and token buckets limit the reviews.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, NamedTuple, TypeVar


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


class KeyedTokenBuckets:
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


MAX_REMEMBERED: Final = 10_000
"""Number of accepted tokens, of refused ones, and of addresses that are remembered."""

REVIEWS_PER_SECOND: Final = 20
REVIEW_BURST: Final = 100
"""Limit of token reviews for unknown tokens."""
SOURCE_REVIEWS_PER_SECOND: Final = 1
SOURCE_REVIEW_BURST: Final = 10
"""Limit per address, so that a pod with random tokens does not use up the limit for all. It is also the limit
per accepted token, whose result can be too old for several requests at once."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Result = TypeVar("Result")


class TooManyReviews(Exception):
    """The limit of reviews of unknown tokens is reached."""


class _Reviewed(NamedTuple, Generic[Result]):
    """Result of a review, and until when it holds, in monotonic seconds."""

    until: float
    result: Result


class _Recent(OrderedDict[Key, Value]):
    """The MAX_REMEMBERED keys that were set last."""

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > MAX_REMEMBERED:
            self.popitem(last=False)


class ReviewedTokens(Generic[Result]):
    """Reviews each token once in a while. The token itself is not stored.

    Random tokens must not keep a caller with a good one from being served. So a token that was accepted
    before is reviewed again without the limits of unknown tokens, and unknown tokens from an address that has
    presented an accepted one, such as a renewed token, only have the limit of this address.

    Args:
        review: reviews a token.
        seconds: returns for how long a result is kept.
        is_accepted: whether a result accepts the token.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        review: Callable[[str], Awaitable[Result]],
        seconds: Callable[[Result], float],
        is_accepted: Callable[[Result], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._review = review
        self._seconds = seconds
        self._is_accepted = is_accepted
        self._clock = clock
        self._accepted: _Recent[bytes, _Reviewed[Result]] = _Recent()
        self._refused: _Recent[bytes, _Reviewed[Result]] = _Recent()
        self._trusted_sources: _Recent[str, None] = _Recent()
        self._reviews = TokenBucket(REVIEWS_PER_SECOND, REVIEW_BURST, clock)
        self._sources = KeyedTokenBuckets(
            SOURCE_REVIEWS_PER_SECOND, SOURCE_REVIEW_BURST, MAX_REMEMBERED, clock
        )
        self._tokens = KeyedTokenBuckets(
            SOURCE_REVIEWS_PER_SECOND, SOURCE_REVIEW_BURST, MAX_REMEMBERED, clock
        )

    async def result(self, token: str, source: str) -> Result:
        """The result of the token's review, from memory if it is known.

        Args:
            token: token of the request.
            source: address of the request.

        Raises:
            TooManyReviews: the limit of reviews is reached; try again later.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._accepted.get(digest) or self._refused.get(digest)
        if known is not None and known.until > self._clock():
            return known.result
        if not self._may_review(digest, source):
            raise TooManyReviews
        result = await self._review(token)
        reviewed = _Reviewed(self._clock() + self._seconds(result), result)
        if self._is_accepted(result):
            self._accepted[digest] = reviewed
            self._trusted_sources[source] = None
        else:
            self._accepted.pop(digest, None)
            self._refused[digest] = reviewed
        return result

    def _may_review(self, digest: bytes, source: str) -> bool:
        if digest in self._accepted:
            return self._tokens.take(digest)
        return self._sources.take(source) and (source in self._trusted_sources or self._reviews.take())
