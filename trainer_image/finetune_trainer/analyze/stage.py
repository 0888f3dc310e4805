# SPDX-License-Identifier: Apache-2.0
"""Run the stage that analyzes a new revision of an endpoint."""

from concurrent.futures import Executor, ThreadPoolExecutor

import httpx

from finetune_trainer.analyze.comparison import MeasuringClock, Probing, RevisionComparison, RevisionReaders
from finetune_trainer.analyze.podreader import TIMEOUT_SECONDS, PodReader
from finetune_trainer.analyze.probe import probe_requests
from finetune_trainer.analyze.probing import BothRevisions
from finetune_trainer.analyze.prometheusreader import PrometheusReader
from finetune_trainer.contract.analysis import AnalyzeResult
from finetune_trainer.contract.configs import AnalyzeConfig
from finetune_trainer.store import open_store


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
