# SPDX-License-Identifier: Apache-2.0
"""Held-out questions to an endpoint: answers of base and tuned model, and load at a fixed rate."""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from openai import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    OpenAI,
    OpenAIError,
    RateLimitError,
)

from finetune_client.endpoint import ComparedAnswers, ask
from finetune_trainer.contract.dataset import Split
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.split_files import split_of
from finetune_trainer.rows import Row, load_rows

NUM_QUESTIONS: Final = 3
MAX_QUESTION_LENGTH: Final = 160
"""Maximum characters of a question, so that it fits into a table."""


def held_out(rows: Path, split: Split) -> list[Row]:
    """NUM_QUESTIONS short rows of the test split with different answers; always the same rows.

    `prepare` uses the same rule for the split.
    """
    chosen: dict[str, Row] = {}
    for row in load_rows(rows):
        short = len(row.input[-1].content) <= MAX_QUESTION_LENGTH
        if short and len(chosen) < NUM_QUESTIONS and split_of(RawRow(row), split) == "test":
            chosen.setdefault(row.output, row)
    return list(chosen.values())


def compare(client: OpenAI, tuned: str, rows: list[Row]) -> list[ComparedAnswers]:
    """Send each question to the base model and to the tuned model with the same parameters."""
    return [
        ComparedAnswers(
            prompt=row.input[0].content,
            expected=row.output,
            base=ask(client, "base", row.input[0].content),
            tuned=ask(client, tuned, row.input[0].content),
        )
        for row in rows
    ]


REQUESTS_PER_SECOND: Final = 2.0
Ask = Callable[[OpenAI, str, str], object]
"""Sends a prompt to a model, and raises `OpenAIError` without a whole answer."""
WORKERS: Final = 64
"""Maximum number of requests in flight: enough that slow answers do not delay the next request."""
TIMED_OUT: Final = "timed out"
REFUSED: Final = "were refused because of load"
OVERLOAD: Final = frozenset({TIMED_OUT, REFUSED})
"""Kinds of failures of a server that is too slow."""

CALIBRATION_REQUESTS: Final = 8
MAX_UTILIZATION: Final = 0.5
"""Share of the rate at which an idle endpoint answered one request after the other."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One completed request.

    Attributes:
        at: time of the monotonic clock when it was sent.
        seconds: time until the answer or the failure.
        failure: reason of the failure; empty for an answer.
        kind: what the failure was, for counts; empty for an answer.
        phase: phase of the load when it ended.
    """

    at: float
    seconds: float
    failure: str
    kind: str = ""
    phase: str = ""


def calibrated_rate(client: OpenAI, model: str, prompts: Sequence[str]) -> float:
    """Requests per second that an endpoint, which is idle now, can answer with room to spare.

    Raises:
        OpenAIError: a request failed.
    """
    ask(client, model, prompts[0])
    seconds = []
    for number in range(CALIBRATION_REQUESTS):
        began = time.monotonic()
        ask(client, model, prompts[number % len(prompts)])
        seconds.append(time.monotonic() - began)
    return min(REQUESTS_PER_SECOND, MAX_UTILIZATION / statistics.median(seconds))


class SteadyLoad:
    """Sends the prompts in turn at a fixed rate, as long as not too many answers are missing.

    Args:
        client, model, prompts: where the prompts are sent.
        per_second: number of requests per second.
        asks: functions that send a prompt, which are used in turn.
        max_in_flight: requests that wait for their answers. The next one is sent when there are fewer.

    Attributes:
        sent, answered, failed: numbers of requests.
        failures: number of failed requests by reason.
        ended: all completed requests.
        slowest: seconds until the slowest answer.
        shed: number of attempts that the endpoint refused because of load; pass `count_shed` to the client.
    """

    def __init__(
        self,
        client: OpenAI,
        model: str,
        prompts: Sequence[str],
        per_second: float = REQUESTS_PER_SECOND,
        asks: Sequence[Ask] = (ask,),
        *,
        max_in_flight: int = WORKERS,
    ) -> None:
        self._client = client
        self._model = model
        self._prompts = prompts
        self._per_second = per_second
        self._asks = asks
        self._max_in_flight = max_in_flight
        self._free = threading.Semaphore(max_in_flight)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="load")
        self._phase = ""
        self.sent = self.answered = self.failed = self.shed = 0
        self.failures: dict[str, int] = {}
        self.ended: list[LoadRequest] = []
        self.slowest = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more requests, and wait for the open ones."""
        self._stop.set()
        self._thread.join()

    def enter(self, phase: str) -> None:
        """Requests that end from now on belong to this phase."""
        self._phase = phase

    def count_shed(self) -> None:
        """Count an attempt that the endpoint refused because of load."""
        with self._lock:
            self.shed += 1

    def line(self) -> str:
        """The counts as text."""
        return (
            f"load: {self.sent} requests sent, {self.answered} answered, {self.failed} failed, {self.shed}"
            " refused and sent again"
        )

    def phases(self) -> list[str]:
        """A line for each phase: how many requests ended in it, how many failed and how."""
        lines = []
        for phase in dict.fromkeys(each.phase for each in self.ended):
            ended = [each for each in self.ended if each.phase == phase]
            kinds = Counter(each.kind for each in ended if each.kind)
            failed = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none failed"
            slowest = max(each.seconds for each in ended)
            lines.append(f"{phase}: {len(ended)} requests, {failed}; the slowest took {slowest:.1f} s")
        return lines

    def _run(self) -> None:
        started = time.monotonic()
        with ThreadPoolExecutor(self._max_in_flight, thread_name_prefix="request") as pool:
            while not self._stop.is_set():
                if not self._free.acquire(timeout=0.1):
                    continue
                ask_model = self._asks[self.sent % len(self._asks)]
                pool.submit(self._ask, ask_model, self._prompts[self.sent % len(self._prompts)])
                self.sent += 1
                self._stop.wait(max(0.0, started + self.sent / self._per_second - time.monotonic()))
                # What could not be sent in time is not sent later: that would be a higher rate.
                started = max(started, time.monotonic() - self.sent / self._per_second)

    def _ask(self, ask_model: Ask, prompt: str) -> None:
        began, failure, kind = time.monotonic(), "", ""
        try:
            ask_model(self._client, self._model, prompt)
        except OpenAIError as error:
            # Only the cause tells why a connection failed.
            failure = f"{type(error).__name__}: {error}" + (
                f" ({error.__cause__})" if error.__cause__ else ""
            )
            kind = _kind(error)
        finally:
            self._free.release()
        seconds = time.monotonic() - began
        with self._lock:
            self.ended.append(LoadRequest(began, seconds, failure, kind, self._phase))
            if failure:
                self.failed += 1
                self.failures[failure] = self.failures.get(failure, 0) + 1
            else:
                self.answered += 1
                self.slowest = max(self.slowest, seconds)


def _kind(error: OpenAIError) -> str:
    match error:
        case APITimeoutError():
            return TIMED_OUT
        case APIConnectionError():
            return "had no connection"
        case RateLimitError():
            return REFUSED
        case APIStatusError():
            return f"got status {error.status_code}"
    return "ended before the answer did"
