# SPDX-License-Identifier: Apache-2.0
"""Send requests to the endpoint at a fixed rate, and count every one."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from openai import OpenAI, OpenAIError

from tools.demo.questions import ask

REQUESTS_PER_SECOND: Final = 2.0
Ask = Callable[[OpenAI, str, str], object]
"""Sends a prompt to a model, and raises `OpenAIError` without a whole answer."""
WORKERS: Final = 64
"""Maximum number of requests in flight: enough that slow answers do not delay the next request."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One completed request.

    Attributes:
        at: time of the monotonic clock when it was sent.
        seconds: time until the answer or the failure.
        failure: reason of the failure; empty for an answer.
    """

    at: float
    seconds: float
    failure: str


class SteadyLoad:
    """Sends the prompts in turn at a fixed rate, independent of the answers.

    Args:
        client, model, prompts: where the prompts are sent.
        per_second: number of requests per second.
        asks: functions that send a prompt, which are used in turn.

    Attributes:
        sent, answered, failed: numbers of requests.
        failures: number of failed requests by reason.
        ended: all completed requests.
        slowest: seconds until the slowest answer.
    """

    def __init__(
        self,
        client: OpenAI,
        model: str,
        prompts: Sequence[str],
        per_second: float = REQUESTS_PER_SECOND,
        asks: Sequence[Ask] = (ask,),
    ) -> None:
        self._client = client
        self._model = model
        self._prompts = prompts
        self._per_second = per_second
        self._asks = asks
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="load")
        self.sent = self.answered = self.failed = 0
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

    def line(self) -> str:
        """The counts as text."""
        return f"load: {self.sent} requests sent, {self.answered} answered, {self.failed} failed"

    def _run(self) -> None:
        started = time.monotonic()
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="request") as pool:
            while not self._stop.is_set():
                ask_model = self._asks[self.sent % len(self._asks)]
                pool.submit(self._ask, ask_model, self._prompts[self.sent % len(self._prompts)])
                self.sent += 1
                self._stop.wait(max(0.0, started + self.sent / self._per_second - time.monotonic()))

    def _ask(self, ask_model: Ask, prompt: str) -> None:
        began, failure = time.monotonic(), ""
        try:
            ask_model(self._client, self._model, prompt)
        except OpenAIError as error:
            # Only the cause tells why a connection failed.
            failure = f"{type(error).__name__}: {error}" + (
                f" ({error.__cause__})" if error.__cause__ else ""
            )
        seconds = time.monotonic() - began
        with self._lock:
            self.ended.append(LoadRequest(began, seconds, failure))
            if failure:
                self.failed += 1
                self.failures[failure] = self.failures.get(failure, 0) + 1
            else:
                self.answered += 1
                self.slowest = max(self.slowest, seconds)
