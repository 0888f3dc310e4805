# SPDX-License-Identifier: Apache-2.0
"""Limits of token reviews: random tokens of some clients do not keep others from being served."""

import pytest

from finetune_operator.engine.token_reviews import (
    MAX_REMEMBERED,
    REVIEW_BURST,
    SOURCE_REVIEW_BURST,
    ReviewedTokens,
    TooManyReviews,
)

HOLDS_SECONDS = 60
PROMETHEUS = "10.0.0.1"


class Reviews:
    """Reviews of tokens, of which some are good. Only a test advances the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.holds_seconds = HOLDS_SECONDS
        self.good = {"good"}
        self.made: list[str] = []
        self.tokens = ReviewedTokens(self._review, lambda _: self.holds_seconds, bool, lambda: self.now)

    async def _review(self, token: str) -> bool:
        self.made.append(token)
        return token in self.good

    async def served(self, token: str, source: str = PROMETHEUS) -> bool:
        """Whether the token is served: it is good, and no limit was reached."""
        try:
            return await self.tokens.result(token, source)
        except TooManyReviews:
            return False

    async def flood(self) -> None:
        """Use up the limit of unknown tokens, from many addresses."""
        for number in range(2 * REVIEW_BURST):
            await self.served(f"random {self.now} {number}", f"10.1.0.{number}")


@pytest.fixture
async def flooded() -> Reviews:
    """A good token was served before the limit was used up, and its result is too old."""
    reviews = Reviews()
    assert await reviews.served("good")
    reviews.now += HOLDS_SECONDS
    await reviews.flood()
    assert not await reviews.served("unknown", "10.2.0.1")
    return reviews


async def test_a_result_is_reused_until_it_is_too_old() -> None:
    reviews = Reviews()
    for _ in range(2 * REVIEW_BURST):
        assert await reviews.served("good")
    assert reviews.made == ["good"]
    reviews.now += HOLDS_SECONDS
    assert await reviews.served("good")
    assert reviews.made == ["good", "good"]


async def test_an_accepted_token_is_reviewed_again_while_unknown_ones_are_refused(flooded: Reviews) -> None:
    assert await flooded.served("good", "10.2.0.2"), "also from another address"


async def test_an_accepted_token_is_reviewed_again_beside_random_ones_of_the_same_address(
    flooded: Reviews,
) -> None:
    for number in range(2 * SOURCE_REVIEW_BURST):
        await flooded.served(f"random {number}")
    assert await flooded.served("good")


async def test_the_renewed_token_of_a_known_address_is_reviewed(flooded: Reviews) -> None:
    flooded.good = {"renewed"}
    assert not await flooded.served("renewed", "10.2.0.3")
    assert await flooded.served("renewed")


async def test_a_token_that_is_accepted_no_more_is_refused_and_loses_its_advantage(flooded: Reviews) -> None:
    flooded.good = set()
    assert not await flooded.served("good")
    flooded.now += HOLDS_SECONDS
    await flooded.flood()
    flooded.made.clear()
    assert not await flooded.served("good", "10.2.0.4")
    assert flooded.made == []


async def test_refused_tokens_do_not_push_an_accepted_one_out_of_memory() -> None:
    reviews = Reviews()
    assert await reviews.served("good")
    for number in range(MAX_REMEMBERED + 1):
        reviews.now += 1 / 10
        await reviews.served(f"random {number}", f"address {number}")
    await reviews.flood()
    assert await reviews.served("good")


async def test_an_accepted_token_has_a_limit_of_its_own(flooded: Reviews) -> None:
    flooded.holds_seconds = 0
    served = [await flooded.served("good") for _ in range(2 * SOURCE_REVIEW_BURST)]
    assert served.count(True) == SOURCE_REVIEW_BURST
