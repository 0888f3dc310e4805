# SPDX-License-Identifier: Apache-2.0
"""The analyze stage: measures both revisions until a verdict is certain, or the max duration has passed."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

import httpx

from finetune_trainer.analyze.gates import (
    Answers,
    Evidence,
    combine_verdicts,
    decide,
    decide_query,
    decide_score,
    look_seconds,
    ratio_problem,
    unknown_metric_problem,
)
from finetune_trainer.analyze.pod_metrics import TIMEOUT_SECONDS, PodReader
from finetune_trainer.analyze.probing import (
    BothRevisions,
    ProbeAnswers,
    ProbeRequest,
    ProbeRequests,
    probe_requests,
)
from finetune_trainer.analyze.prometheus_queries import PrometheusReader, QueriedValues
from finetune_trainer.contract.analysis import (
    ANSWER_METRICS,
    AnalysisFigure,
    AnalysisVerdict,
    AnalyzeResult,
    is_queried,
)
from finetune_trainer.contract.configs import AnalysisProbe, AnalyzeConfig
from finetune_trainer.store import open_store

SECONDS_BETWEEN_READINGS: Final = 5.0
ANSWER_LOOKS: Final = (0.25, 0.5, 1.0)
"""Shares of the rows after which the answers are looked at."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MeasuringClock:
    """Time of a measurement, in seconds."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    date: Callable[[], float] = time.time
    """Seconds since 1970."""


@dataclass(slots=True)
class RevisionReaders:
    """The pods of both revisions."""

    new: PodReader
    stable: PodReader
    executor: Executor
    clock: MeasuringClock
    _last: float = -math.inf

    def read(self) -> None:
        """Read all pods."""
        self.new.read(self.executor)
        self.stable.read(self.executor)
        self._last = self.clock.now()

    def read_if_due(self) -> None:
        """Read all pods if the last reading was some seconds ago."""
        if self.clock.now() - self._last >= SECONDS_BETWEEN_READINGS:
            self.read()

    def read_until(self, end: float) -> None:
        """Read all pods every few seconds until this time, and then once more."""
        while (left := end - self.clock.now()) > 0:
            self.clock.sleep(min(left, SECONDS_BETWEEN_READINGS))
            self.read()


@dataclass(slots=True)
class Probing:
    """Rows that both revisions answer while they are measured."""

    probe: AnalysisProbe
    requests: ProbeRequests
    revisions: BothRevisions
    answered: list[ProbeAnswers] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether all rows were sent."""
        return len(self.answered) == len(self.requests.rows)

    def send_next(self) -> None:
        """Send the next row to both revisions."""
        self.answered.append(self.revisions.ask(self.requests.rows[len(self.answered)]))

    @property
    def is_at_look(self) -> bool:
        """Whether the answers are looked at after this row."""
        rows = len(self.requests.rows)
        return len(self.answered) in {math.ceil(share * rows) for share in ANSWER_LOOKS}

    def answers(self, *, is_complete: bool) -> Answers:
        """The answers at a look."""
        return Answers(
            self.probe.models, self.answered, self.probe.min_rows, len(ANSWER_LOOKS), is_complete=is_complete
        )

    @property
    def problem(self) -> str:
        """Why the last row without an answer had none; empty if all were answered."""
        return self.revisions.new.problem or self.revisions.stable.problem

    def rest(self) -> Sequence[ProbeRequest]:
        """The requests that were not sent yet."""
        return (*self.requests.rows[len(self.answered) :], *self.requests.repeated)


@dataclass(slots=True)
class RevisionComparison:
    """The measurement of one step or bake."""

    config: AnalyzeConfig
    readers: RevisionReaders
    probing: Probing | None
    prometheus: PrometheusReader | None = None
    _figures: list[AnalysisFigure] = field(init=False)
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.readers.clock.now()
        self._figures = [
            AnalysisFigure(metric=gate.metric, verdict="Inconclusive") for gate in self.config.gates
        ]

    def run(self) -> AnalyzeResult:
        """Look at the figures again and again. The first failed gate ends it."""
        config, clock = self.config, self.readers.clock
        self.readers.read()
        shortest = config.max_duration_seconds if config.whole_duration else config.duration_seconds
        looks = look_seconds(config.duration_seconds, config.max_duration_seconds)
        num_looks = len(looks) + (self.probing is not None)
        for look in looks:
            until = self._start + look
            while self._has_rows_to_score and clock.now() < until:
                if self._score_next() == "Fail":
                    return self._result()
            self.readers.read_until(until)
            is_last = look == looks[-1]
            if is_last and self._has_rows_to_score:
                self._look_at_answers(is_complete=True)
            is_long_enough = look >= shortest
            self._look_at_pods(num_looks, is_long_enough=is_long_enough)
            if look >= config.duration_seconds and self._verdict != "Fail":
                self._look_at_queries(num_looks, is_long_enough=is_long_enough)
            verdict = self._verdict
            if verdict == "Fail" or (verdict == "Pass" and is_long_enough):
                return self._result()
        if self.probing is not None and self._serving_is_inconclusive:
            self._send_rest(self.probing)
            self._look_at_pods(num_looks, is_long_enough=True)
            if self._verdict != "Fail":
                self._look_at_queries(num_looks, is_long_enough=True)
        return self._result()

    @property
    def _has_rows_to_score(self) -> bool:
        has_gates = any(gate.metric in ANSWER_METRICS for gate in self.config.gates)
        return has_gates and self.probing is not None and not self.probing.is_complete

    def _score_next(self) -> AnalysisVerdict:
        """Send the next row; the verdict after it."""
        assert self.probing is not None  # noqa: S101 - the caller checks
        self.probing.send_next()
        if not self.probing.is_at_look:
            self.readers.read_if_due()
            return "Inconclusive"
        self.readers.read()
        self._look_at_answers(is_complete=self.probing.is_complete)
        return self._verdict

    def _send_rest(self, probing: Probing) -> None:
        """Send requests until all are sent, or the max duration has passed once more."""
        requests, clock = probing.rest(), self.readers.clock
        end = clock.now() + self.config.max_duration_seconds
        logger.info("sending %d requests to each revision", len(requests))
        for request in requests:
            if clock.now() >= end:
                logger.warning("stopped, because the requests take longer than the measurement")
                break
            probing.revisions.ask(request)
        self.readers.read()

    def _look_at_answers(self, *, is_complete: bool) -> None:
        assert self.probing is not None  # noqa: S101 - the caller checks
        answers = self.probing.answers(is_complete=is_complete)
        for index, gate in enumerate(self.config.gates):
            if gate.metric in ANSWER_METRICS:
                self._figures[index] = decide_score(gate, answers)
        self._log(f"{len(answers.rows)} rows")

    def _look_at_pods(self, num_looks: int, *, is_long_enough: bool) -> None:
        evidence = self._evidence(num_looks, is_long_enough=is_long_enough)
        for index, gate in enumerate(self.config.gates):
            if gate.metric not in ANSWER_METRICS and not is_queried(gate.metric):
                self._figures[index] = decide(gate, evidence)
        self._log(f"{evidence.new.requests:.0f} requests")

    def _look_at_queries(self, num_looks: int, *, is_long_enough: bool) -> None:
        """Evaluate the queries, and read the pods meanwhile."""
        if self.prometheus is None:
            return
        reading = self.readers.executor.submit(self.prometheus.read)
        while wait([reading], SECONDS_BETWEEN_READINGS).not_done:
            self.readers.read()
        reading.result()
        evidence = self._evidence(num_looks, is_long_enough=is_long_enough)
        for index, gate in enumerate(self.config.gates):
            if is_queried(gate.metric):
                values = self.prometheus.values.get(gate.metric, QueriedValues())
                self._figures[index] = decide_query(gate, values, evidence)
        self._log("the queries")

    def _evidence(self, num_looks: int, *, is_long_enough: bool) -> Evidence:
        new, stable = self.readers.new.metrics, self.readers.stable.metrics
        return Evidence(new, stable, self.config.min_requests, num_looks, is_long_enough)

    @property
    def _verdict(self) -> AnalysisVerdict:
        return combine_verdicts(figure.verdict for figure in self._figures)

    @property
    def _serving_is_inconclusive(self) -> bool:
        pairs = zip(self.config.gates, self._figures, strict=True)
        return any(
            figure.verdict == "Inconclusive" for gate, figure in pairs if gate.metric not in ANSWER_METRICS
        )

    def _log(self, after: str) -> None:
        shown = [figure.to_json() for figure in self._figures]
        logger.info("after %.0f s and %s: %s", self.readers.clock.now() - self._start, after, shown)

    def _result(self) -> AnalyzeResult:
        new, stable = self.readers.new, self.readers.stable
        return AnalyzeResult(
            verdict=self._verdict,
            figures=tuple(self._figures),
            requests=round(new.metrics.requests),
            stable_requests=round(stable.metrics.requests),
            seconds=round(self.readers.clock.now() - self._start, 1),
            problem="; ".join(filter(None, self._problems())),
        )

    def _problems(self) -> Iterator[str]:
        """Why there is no verdict, those of the queries first, and why pods could not be read."""
        if self.prometheus is not None:
            yield self.prometheus.problem
            values = self.prometheus.values
            for gate in self.config.gates:
                yield ratio_problem(gate, values.get(gate.metric, QueriedValues()))
        yield from map(unknown_metric_problem, self.config.gates)
        yield self.readers.new.problem or self.readers.stable.problem
        if self.probing is not None:
            yield self.probing.problem


def run(config: AnalyzeConfig, clock: MeasuringClock | None = None) -> AnalyzeResult:
    """Measure until a verdict is certain, or the max duration has passed and probes have not helped.

    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, INVALID_CONFIG, INVALID_CREDENTIALS,
    STORE_UNAVAILABLE).
    """
    clock = clock or MeasuringClock()
    # Pods have addresses in the cluster, which no proxy knows.
    with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as client, ThreadPoolExecutor() as executor:
        new = PodReader(config.pods, client)
        stable = PodReader(config.stable_pods, client, from_start=config.baseline == "Past")
        readers = RevisionReaders(new, stable, executor, clock)
        probing, prometheus = _probing(config, client, executor), _prometheus(config, clock)
        return RevisionComparison(config, readers, probing, prometheus).run()


def _probing(config: AnalyzeConfig, client: httpx.Client, executor: Executor) -> Probing | None:
    if config.probe is None:
        return None
    requests = probe_requests(config.probe, open_store(config.store))
    return Probing(config.probe, requests, BothRevisions.of(config, config.probe, client, executor))


def _prometheus(config: AnalyzeConfig, clock: MeasuringClock) -> PrometheusReader | None:
    if config.prometheus is None:
        return None
    compared = {
        gate.metric
        for gate in config.gates
        if any(bound is not None for bound in (gate.max_increase, gate.max_decrease, gate.max_ratio))
    }
    is_stable_past = config.baseline == "Past"
    return PrometheusReader(config.prometheus, compared, clock.date, is_stable_past=is_stable_past)
