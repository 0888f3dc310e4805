"""Results of token reviews, kept by the token's hash, and limits of reviews of unknown tokens."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from finetune_operator.report.rate import Buckets, TokenBucket

MAX_REMEMBERED_TOKENS: Final = 10_000

REVIEWS_PER_SECOND: Final = 20
REVIEW_BURST: Final = 100
"""Limit of token reviews for unknown tokens."""
SOURCE_REVIEWS_PER_SECOND: Final = 1
SOURCE_REVIEW_BURST: Final = 10
"""Limit per address, so that a pod with random tokens does not use up the limit for all."""
MAX_REMEMBERED_SOURCES: Final = 10_000

Result = TypeVar("Result")


class TooManyReviews(Exception):
    """The limit of reviews of unknown tokens is reached."""


class ReviewedTokens(Generic[Result]):
    """Reviews each token once in a while. The token itself is not stored.

    Args:
        review: reviews a token.
        seconds: returns for how long a result is kept.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        review: Callable[[str], Awaitable[Result]],
        seconds: Callable[[Result], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._review = review
        self._seconds = seconds
        self._clock = clock
        self._results: OrderedDict[bytes, tuple[float, Result]] = OrderedDict()
        self._reviews = TokenBucket(REVIEWS_PER_SECOND, REVIEW_BURST, clock)
        self._sources = Buckets(SOURCE_REVIEWS_PER_SECOND, SOURCE_REVIEW_BURST, MAX_REMEMBERED_SOURCES, clock)

    async def result(self, token: str, source: str) -> Result:
        """The result of the token's review, from memory if it is known.

        Args:
            token: token of the request.
            source: address of the request.

        Raises:
            TooManyReviews: the limit of reviews is reached; try again later.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._results.get(digest)
        if known is not None and known[0] > self._clock():
            return known[1]
        if not (self._sources.take(source) and self._reviews.take()):
            raise TooManyReviews
        result = await self._review(token)
        self._results[digest] = (self._clock() + self._seconds(result), result)
        self._results.move_to_end(digest)
        while len(self._results) > MAX_REMEMBERED_TOKENS:
            self._results.popitem(last=False)
        return result
