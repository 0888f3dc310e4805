# SPDX-License-Identifier: Apache-2.0
"""Read the metrics of the pods of one revision, again and again, and add up what they count."""

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

import httpx

from finetune_trainer.analyze.series import PodMetrics, read_metrics, served_digests, total

TIMEOUT_SECONDS: Final = 5.0
"""Max time for a part of a response, and for the body as a whole."""
MAX_METRICS_BYTES: Final = 4 * 2**20
MAX_PROBLEM_CHARACTERS: Final = 300


def get_metrics(client: httpx.Client, url: str) -> str:
    """The metrics of one pod. Raises httpx.HTTPError, and ValueError if they are not text or too large."""
    with client.stream("GET", url) as response:
        response.raise_for_status()
        body, deadline = bytearray(), time.monotonic() + TIMEOUT_SECONDS
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_METRICS_BYTES:
                raise ValueError(f"its metrics have more than {MAX_METRICS_BYTES} bytes")
            if time.monotonic() > deadline:
                raise ValueError(f"its metrics took more than {TIMEOUT_SECONDS:g} s")
    return body.decode()


class PodReader:
    """The pods of one revision.

    A pod that ends keeps what it has counted. One that could not be read is tried again at the next reading.
    Another pod can get the address of one that has ended. It is recognized by its models, and not counted.
    """

    def __init__(self, urls: Sequence[str], client: httpx.Client, *, from_start: bool = False) -> None:
        """`from_start`: whether requests before the first reading count too."""
        self._urls = urls
        self._client = client
        self._from_start = from_start
        self._last: dict[str, PodMetrics] = {}
        self._digests: dict[str, frozenset[str]] = {}
        self._counted: dict[str, PodMetrics] = {}
        self._queues: list[float] = []
        self._problems: dict[str, str] = {}

    def read(self, executor: Executor) -> None:
        """Read all pods."""
        readings = executor.map(self._read_pod, self._urls)
        waiting: list[float] = []
        for url, reading in zip(self._urls, readings, strict=True):
            if isinstance(reading, str):
                self._problems[url] = reading
                continue
            self._problems.pop(url, None)
            last = self._last.get(url, PodMetrics())
            if url in self._last or self._from_start:
                new = reading.since(last)
                self._counted[url] = self._counted.get(url, PodMetrics()).plus(new)
            self._last[url] = reading.completed_by(last)
            waiting += [] if reading.queue is None else [reading.queue]
        self._queues += [sum(waiting) / len(waiting)] if waiting else []

    @property
    def metrics(self) -> PodMetrics:
        """What all pods have counted, with the mean queue per pod over all readings."""
        counted = total(self._counted.values())
        queue = sum(self._queues) / len(self._queues) if self._queues else None
        return replace(counted, queue=queue)

    @property
    def problem(self) -> str:
        """Why pods could not be read the last time; empty if all could."""
        if not self._problems:
            return ""
        url, why = next(iter(self._problems.items()))
        problem = f"{len(self._problems)} of {len(self._urls)} pods could not be read; {url}: {why}"
        return problem[:MAX_PROBLEM_CHARACTERS]

    def _read_pod(self, url: str) -> PodMetrics | str:
        """The counts of one pod, or why they cannot be read."""
        try:
            text = get_metrics(self._client, url)
            digests = served_digests(text)
            if self._digests.setdefault(url, digests) != digests:
                return "it does not show the models that it had before, so it is not counted"
            return read_metrics(text)
        except httpx.HTTPStatusError as error:
            return f"status {error.response.status_code}"
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return f"{type(error).__name__}: {error}"
