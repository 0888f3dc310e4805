# SPDX-License-Identifier: Apache-2.0
"""Which requests a busy server takes, and when the others should come back.

A server that queues every request answers none of them in time: each client gives up and asks again. This
one refuses a request at once (429) if its turn would come too late, by the measured time per answer.
`Retry-After` is the turn that the request would have had: each refused client gets a later one than the
client before, and its place in the queue is kept. So the openai SDK, which comes back twice, is answered
unless the overload lasts.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

ShedReason = Literal["queue_full", "too_late", "waited"]
SHED_REASONS: Final[tuple[ShedReason, ...]] = get_args(ShedReason)
"""queue_full: as many requests wait as may. too_late: its turn would come too late. waited: it did."""

MAX_WAIT_SECONDS: Final = 30.0
"""Longest wait for a slot of a request without a deadline. Many clients and proxies end a request at 60 s."""
RETURNING_FACTOR: Final = 1.5
"""A request that comes back may wait this many times as long. Another refusal could be its last."""
MAX_RETRY_AFTER_SECONDS: Final = 60
"""Versions of the openai SDK ignore a longer time, and come back within seconds."""

_RETRY_COUNT: Final = "x-stainless-retry-count"
"""Header of the SDKs of OpenAI: how often a request was tried before."""
_MEMORY_SECONDS: Final = 10.0
"""Busy time after which a measurement counts 1/e."""
_MEMORY_ANSWERS: Final = 8
_MARGIN: Final = 1.25
"""Factor of the time until a refused request should come back, because the rate is an estimate."""
_UNMEASURED_SECONDS: Final = 5.0
"""Time per answer before one was measured. Clients that come back too early use up their retries."""
_LATE_SECONDS: Final = 5
"""Time for which the place of a request is kept that does not come back."""


def is_returning(headers: Mapping[str, str]) -> bool:
    """Whether the client has sent this request before, as it says. Names in `headers` are in lower case."""
    return headers.get(_RETRY_COUNT, "0") not in ("", "0")


class AnswerRate:
    """The time per answer of a full batch, by recent measurements."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._tokens_per_answer: float | None = None

    def measure(self, tokens: float, seconds: float) -> None:
        """Add some busy time, and the tokens that a full batch generates in it."""
        kept = math.exp(-seconds / _MEMORY_SECONDS)
        self._tokens = kept * self._tokens + tokens
        self._seconds = kept * self._seconds + seconds

    def answered(self, tokens: int) -> None:
        """Add the length of a complete answer."""
        before = self._tokens_per_answer
        self._tokens_per_answer = tokens if before is None else before + (tokens - before) / _MEMORY_ANSWERS

    def seconds_per_answer(self, unfinished_seconds: float = 0.0) -> float | None:
        """Mean time between two answers of a full batch; None before the first answer.

        `unfinished_seconds`: busy time whose tokens are not known yet.
        """
        if self._tokens_per_answer is None or not self._tokens:
            return None
        return self._tokens_per_answer * (self._seconds + unfinished_seconds) / self._tokens


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused, and when it should come back."""

    reason: ShedReason
    retry_after_seconds: int


class AdmissionControl:
    """Decides about each request of one server. Not thread-safe."""

    def __init__(self, slots: int, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`slots`: answers at the same time. `max_queue`: answers that may wait."""
        self.throughput = AnswerRate()
        self._slots = slots
        self._max_queue = max_queue
        self._clock = clock
        self._awaited: Counter[int] = Counter()
        """Number of refused answers by the second at which they should come back. At most 66 keys."""

    def max_wait(self, remaining_seconds: float | None, *, returning: bool = False) -> float:
        """Seconds that a request may wait for a slot.

        Args:
            remaining_seconds: time until the deadline of the request; None without a deadline.
            returning: whether it was refused before.
        """
        if remaining_seconds is None:
            return MAX_WAIT_SECONDS * (RETURNING_FACTOR if returning else 1)
        answering = self._slots * (self.throughput.seconds_per_answer() or 0.0)
        return remaining_seconds - min(answering, remaining_seconds / 2)

    def refusal(
        self,
        waiting: int,
        answers: int = 1,
        *,
        remaining_seconds: float | None = None,
        returning: bool = False,
        unfinished_seconds: float = 0.0,
    ) -> Refusal | None:
        """Decide about a request for which no slot is free. None: it may wait.

        Args:
            waiting: answers that wait for a slot. An empty queue has room for any request.
            answers: answers of the request.
            remaining_seconds: time until its deadline; None without a deadline.
            returning: whether it was refused before, so that its place is kept.
            unfinished_seconds: busy time that is not measured yet.
        """
        now = self._clock()
        self._forget_late(now)
        if returning:
            self._redeem(answers)
        if not waiting:
            return None
        each = self.throughput.seconds_per_answer(unfinished_seconds)
        max_wait = self.max_wait(remaining_seconds, returning=returning)
        ahead = waiting
        if not returning:
            # Places are kept for those that come back until its turn, and some for those that come back
            # later, because the turn is an estimate.
            turn = now + (waiting + 1) * (each or _UNMEASURED_SECONDS)
            before = sum(count for second, count in self._awaited.items() if second <= turn)
            ahead += max(before, min(self._awaited.total(), self._max_queue // 2))
        is_full = ahead + answers > self._max_queue
        if not is_full and (each is None or (ahead + 1) * each <= max_wait):
            return None
        places = waiting + self._awaited.total()
        seconds = (places + answers - self._max_queue) * (each or _UNMEASURED_SECONDS)
        if each is not None:
            seconds = max(seconds, (places + 1) * each - max_wait)
        return self._refuse("queue_full" if is_full else "too_late", seconds, answers)

    def give_up(self, ahead: int, answers: int = 1) -> Refusal:
        """Refuse a request that has waited as long as it may, with this many answers before it."""
        each = self.throughput.seconds_per_answer() or _UNMEASURED_SECONDS
        return self._refuse("waited", (ahead + 1) * each, answers)

    def _refuse(self, reason: ShedReason, seconds: float, answers: int) -> Refusal:
        retry_after = min(max(1, math.ceil(_MARGIN * seconds)), MAX_RETRY_AFTER_SECONDS)
        now = math.ceil(self._clock())
        # No more of them come back in the same second than may wait together.
        while retry_after < MAX_RETRY_AFTER_SECONDS and self._awaited[now + retry_after] >= self._max_queue:
            retry_after += 1
        self._awaited[now + retry_after] += answers
        return Refusal(reason, retry_after)

    def _forget_late(self, now: float) -> None:
        for second in [each for each in self._awaited if each + _LATE_SECONDS < now]:
            del self._awaited[second]

    def _redeem(self, answers: int) -> None:
        """Take the earliest places that were kept."""
        for second in sorted(self._awaited):
            taken = min(answers, self._awaited[second])
            self._awaited[second] -= taken
            answers -= taken
            if not self._awaited[second]:
                del self._awaited[second]
            if not answers:
                return
