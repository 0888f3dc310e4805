# SPDX-License-Identifier: Apache-2.0
"""Which requests a busy server refuses, and that clients with the retries of the openai SDK are answered.

The clock is a number, so no test waits.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from finetune_trainer.serve.admission import (
    MAX_RETRY_AFTER_SECONDS,
    MAX_WAIT_SECONDS,
    RETURNING_FACTOR,
    AdmissionControl,
    Refusal,
    is_returning,
)

ATTEMPTS: Final = 3
"""The first attempt and the default retries of the openai SDK."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock, max_queue: int = 64, seconds_per_answer: float | None = None) -> AdmissionControl:
    """That of a server with 8 slots, which has answered 10 requests if `seconds_per_answer` is given."""
    made = AdmissionControl(8, max_queue, clock)
    for _ in range(10 if seconds_per_answer else 0):
        made.throughput.measure(5, seconds_per_answer or 0)
        made.throughput.answered(5)
    return made


def test_an_empty_queue_takes_any_request() -> None:
    assert admission(Clock(), max_queue=0, seconds_per_answer=1000).refusal(0, answers=100) is None


def test_a_request_waits_if_its_turn_comes_in_time_and_comes_back_when_it_would() -> None:
    slow = admission(Clock(), seconds_per_answer=2)
    assert slow.refusal(int(MAX_WAIT_SECONDS / 2) - 1) is None
    refused = slow.refusal(int(MAX_WAIT_SECONDS / 2) + 7)
    assert refused is not None
    assert refused.reason == "too_late"
    assert 16 <= refused.retry_after_seconds <= 25


def test_before_an_answer_was_measured_only_the_length_of_the_queue_counts() -> None:
    new = admission(Clock(), max_queue=3)
    assert new.refusal(2) is None
    assert new.refusal(3) == Refusal("queue_full", 7)


def test_a_pass_that_does_not_end_counts() -> None:
    hanging = admission(Clock(), seconds_per_answer=0.1)
    assert hanging.refusal(5) is None
    assert hanging.refusal(5, unfinished_seconds=600) is not None


def test_with_a_deadline_the_answer_must_end_before_it() -> None:
    slow = admission(Clock(), seconds_per_answer=1)
    # An answer takes 8 s in a full batch.
    assert slow.max_wait(20) == pytest.approx(12)
    assert slow.refusal(11, remaining_seconds=20) is None
    assert slow.refusal(12, remaining_seconds=20) is not None
    assert slow.refusal(100 - 60, remaining_seconds=600) is None
    # A server that is too slow for the deadline even so still takes what would begin in half of it.
    assert slow.max_wait(4) == pytest.approx(2)


def test_each_refused_client_gets_its_own_turn_and_its_place_is_kept() -> None:
    clock = Clock()
    full = admission(clock, max_queue=10, seconds_per_answer=0.5)
    refused = [full.refusal(10) for _ in range(10)]
    times = [each.retry_after_seconds for each in refused if each is not None]
    assert len(times) == 10
    assert times == sorted(times)
    assert times[-1] >= 10 * 0.5

    clock.now = times[0]
    # Another client must not take the place, although one is free.
    assert full.refusal(9) is not None
    assert full.refusal(9, returning=True) is None


def test_a_place_is_not_kept_for_ever() -> None:
    clock = Clock()
    full = admission(clock, max_queue=4, seconds_per_answer=0.5)
    for _ in range(20):
        full.refusal(4)
    assert full.refusal(3) is not None
    clock.now = MAX_RETRY_AFTER_SECONDS + 10
    assert full.refusal(3) is None


def test_refusals_need_no_memory_and_no_client_is_sent_away_for_longer_than_sdks_obey() -> None:
    full = admission(Clock(), seconds_per_answer=1)
    times = []
    for _ in range(10_000):
        refused = full.refusal(64)
        assert refused is not None
        times.append(refused.retry_after_seconds)
    assert max(times) == MAX_RETRY_AFTER_SECONDS
    assert len(full._awaited) <= MAX_RETRY_AFTER_SECONDS


@pytest.mark.parametrize(
    ("headers", "returning"),
    [({}, False), ({"x-stainless-retry-count": "0"}, False), ({"x-stainless-retry-count": "1"}, True)],
)
def test_the_sdk_says_that_a_request_comes_back(headers: dict[str, str], *, returning: bool) -> None:
    assert is_returning(headers) is returning


@dataclass
class Server:
    """A server and its clients, which are simulated: each sends its requests one after the other.

    Attributes:
        seconds: time of an answer in a slot, by the time at which it begins.
        failed: requests whose last attempt was refused.
        waits: seconds for which each answered request has waited.
    """

    seconds: Callable[[float], float]
    clients: int
    requests: int = 1
    slots: int = 8
    max_queue: int = 64
    pause: float = 0
    shed: int = 0
    failed: int = 0
    waits: list[float] = field(default_factory=list)

    def run(self, seed: int = 0) -> "Server":
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._clock = Clock()
        self._admission = AdmissionControl(self.slots, self.max_queue, self._clock)
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._waiting: list[tuple[int, int, float]] = []
        self._running, self._ended_at, self._number = 0, 0.0, 0
        self._left = dict.fromkeys(range(self.clients), self.requests)
        for client in range(self.clients):
            self._later(0, self._arrive, client, 0)
        while self._events:
            self._clock.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        return self

    def _later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (self._clock.now + seconds, self._number, call, arguments))

    def _arrive(self, client: int, attempt: int) -> None:
        if self._running < self.slots and not self._waiting:
            self._begin(client, self._clock.now)
            return
        returning = attempt > 0
        refusal = self._admission.refusal(len(self._waiting), returning=returning)
        if refusal is not None:
            self._refuse(client, attempt, refusal)
            return
        entry = (client, attempt, self._clock.now)
        self._waiting.append(entry)
        self._later(self._admission.max_wait(None, returning=returning), self._give_up, entry)

    def _give_up(self, entry: tuple[int, int, float]) -> None:
        if entry in self._waiting:
            ahead = self._waiting.index(entry)
            self._waiting.remove(entry)
            self._refuse(entry[0], entry[1], self._admission.give_up(ahead))

    def _refuse(self, client: int, attempt: int, refusal: Refusal) -> None:
        self.shed += 1
        if attempt + 1 < ATTEMPTS:
            self._later(refusal.retry_after_seconds, self._arrive, client, attempt + 1)
        else:
            self.failed += 1
            self._next(client)

    def _begin(self, client: int, arrived: float) -> None:
        now = self._clock.now
        self.waits.append(now - arrived)
        self._running += 1
        self._later(self.seconds(now) * self._random.uniform(0.5, 1.5), self._end, client, now)

    def _end(self, client: int, began: float) -> None:
        now = self._clock.now
        self._running -= 1
        busy = now - self._ended_at if self._waiting else (now - began) / self.slots
        self._ended_at = now
        self._admission.throughput.measure(1, busy)
        self._admission.throughput.answered(1)
        self._next(client)
        if self._waiting:
            following, _, arrived = self._waiting.pop(0)
            self._begin(following, arrived)

    def _next(self, client: int) -> None:
        self._left[client] -= 1
        if self._left[client]:
            self._later(self._random.random() * self.pause, self._arrive, client, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "server",
    [
        pytest.param(lambda: Server(lambda _: 1.0, clients=200), id="200 clients at once"),
        pytest.param(
            lambda: Server(lambda _: 0.2, clients=16, requests=20, slots=2, max_queue=4), id="a short queue"
        ),
        pytest.param(
            lambda: Server(lambda at: 6.0 if 20 < at < 80 else 1.0, clients=64, requests=20, pause=4),
            id="six times slower for a minute",
        ),
        pytest.param(
            lambda: Server(lambda at: 12.0 if at > 5 else 2.0, clients=30, requests=10, pause=4),
            id="six times slower from then on",
        ),
    ],
)
def test_under_load_no_client_with_the_retries_of_the_sdk_fails(
    server: Callable[[], Server], seed: int
) -> None:
    ended = server().run(seed)
    assert ended.shed > 0
    assert ended.failed == 0
    assert len(ended.waits) == ended.clients * ended.requests
    assert max(ended.waits) <= MAX_WAIT_SECONDS * RETURNING_FACTOR


def test_where_nobody_waits_nobody_is_refused() -> None:
    assert Server(lambda _: 1.0, clients=8, requests=20).run().shed == 0
