# SPDX-License-Identifier: Apache-2.0
"""A small run of the operator's benchmark: figures that do not depend on the machine stay within bounds."""

from pathlib import Path

from tools.bench.operator.measurement import measure
from tools.bench.operator.requestledger import OPERATOR

RUNS = 10
MAX_REQUESTS_TO_FIRST_JOB = 4
"""Operator requests per run: its Job, its status, an Event, and a share of what all runs need together."""
MAX_WRITES = 20
"""Operator writes per run from creation to promotion, with Events and without leases."""
MAX_PEAK_BYTES = 140 << 20
"""1.5 times the memory for these few runs; docs/benchmarks.md has the target at 1,000 runs."""


def test_a_run_costs_few_requests_and_a_restart_writes_nothing(tmp_path: Path) -> None:
    shown: list[str] = []
    measured = measure(RUNS, tmp_path, shown.append)
    assert 0 < measured.first_jobs.last < measured.done.last
    assert measured.first_requests.of(OPERATOR) <= RUNS * MAX_REQUESTS_TO_FIRST_JOB, measured.first_requests
    assert measured.chain.writes <= RUNS * MAX_WRITES, measured.chain.requests
    assert measured.restart.writes == 0, measured.restart.requests
    for process in (measured.chain, measured.restart):
        assert 0 < process.peak_bytes < MAX_PEAK_BYTES
    assert f"{RUNS} created, {RUNS} with a Job, {RUNS} at their last stage or done" in shown
