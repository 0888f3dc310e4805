# SPDX-License-Identifier: Apache-2.0
"""Rate limits by token buckets."""

from finetune_operator.engine.token_reviews import KeyedTokenBuckets, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_then_the_rate_counts() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=2, burst=3, clock=clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.now = 0.4
    assert not bucket.take()
    clock.now = 0.5
    assert bucket.take()
    clock.now = 100
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_one_callers_excess_does_not_count_against_another() -> None:
    buckets = KeyedTokenBuckets(rate=1, burst=1, remembered=10, clock=Clock())
    assert buckets.take("noisy")
    assert not buckets.take("noisy")
    assert buckets.take("quiet")


def test_only_so_many_callers_are_remembered() -> None:
    buckets = KeyedTokenBuckets(rate=1, burst=1, remembered=2, clock=Clock())
    for caller in ("a", "b", "c"):
        assert buckets.take(caller)
    assert buckets.take("a")
    assert not buckets.take("c")
