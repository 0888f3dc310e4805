"""Run the stage that analyzes a new revision of an endpoint."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import httpx

from finetune_trainer.analyze.gates import Evidence, combined, decide, look_seconds
from finetune_trainer.analyze.podreader import TIMEOUT_SECONDS, PodReader
from finetune_trainer.analyze.probe import probe_requests, send
from finetune_trainer.contract.analysis import AnalyzeResult
from finetune_trainer.contract.configs.analyze import AnalyzeConfig
from finetune_trainer.store import open_store

SECONDS_BETWEEN_READINGS: Final = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MeasuringClock:
    """Time of a measurement, in seconds."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class RevisionReaders:
    """The pods of both revisions."""

    new: PodReader
    stable: PodReader
    executor: Executor
    clock: MeasuringClock

    def read(self) -> None:
        """Read all pods."""
        self.new.read(self.executor)
        self.stable.read(self.executor)

    def read_until(self, end: float) -> None:
        """Read all pods every few seconds until this time, and then once more."""
        while (left := end - self.clock.now()) > 0:
            self.clock.sleep(min(left, SECONDS_BETWEEN_READINGS))
            self.read()


def run(config: AnalyzeConfig, clock: MeasuringClock | None = None) -> AnalyzeResult:
    """Measure until a verdict is certain, or the max duration has passed and probes have not helped.

    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, INVALID_CONFIG, STORE_UNAVAILABLE).
    """
    # Pods have addresses in the cluster, which no proxy knows.
    with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as client, ThreadPoolExecutor() as executor:
        new = PodReader(config.pods, client)
        stable = PodReader(config.stable_pods, client, from_start=config.baseline == "Past")
        return _measure(config, RevisionReaders(new, stable, executor, clock or MeasuringClock()))


def _measure(config: AnalyzeConfig, readers: RevisionReaders) -> AnalyzeResult:
    shortest = config.max_duration_seconds if config.whole_duration else config.duration_seconds
    looks = look_seconds(config.duration_seconds, config.max_duration_seconds)
    num_looks, requests = len(looks), []
    if config.probe is not None:
        num_looks += 1
        requests = probe_requests(config.probe, open_store(config.store))
    start = readers.clock.now()
    readers.read()

    def look_at_figures(*, is_long_enough: bool) -> AnalyzeResult:
        new, stable = readers.new, readers.stable
        evidence = Evidence(new.metrics, stable.metrics, config.min_requests, num_looks, is_long_enough)
        figures = tuple(decide(gate, evidence) for gate in config.gates)
        result = AnalyzeResult(
            verdict=combined(figure.verdict for figure in figures),
            figures=figures,
            requests=round(evidence.new.requests),
            stable_requests=round(evidence.stable.requests),
            seconds=round(readers.clock.now() - start, 1),
            problem=new.problem or stable.problem,
        )
        logger.info("after %.0f s: %s", result.seconds, result.to_json())
        return result

    for look in looks:
        readers.read_until(start + look)
        result = look_at_figures(is_long_enough=look >= shortest)
        if result.verdict != "Inconclusive":
            return result
    if config.probe is not None:
        logger.info("sending %d requests to each revision", config.probe.requests)
        send(config.probe, requests, readers.executor)
        readers.read()
    return look_at_figures(is_long_enough=True)
