"""The measurement of the operator, small: it works, and what does not depend on the machine is kept."""

from pathlib import Path

from tools.bench.operator.measurement import measure
from tools.bench.operator.requestledger import OPERATOR

RUNS = 10
REQUESTS_TO_FIRST_JOB = 4
"""Of the operator, for one run: the Job, the status and an Event; what all runs need together is in it."""
WRITES = 20
"""Of the operator, for one run from creation to promotion; events included, leases apart."""
PEAK_BYTES = 140 << 20
"""Half as much again as the operator needs for these few runs; docs/benchmarks.md has the target at 1,000."""


def test_a_run_costs_few_requests_and_a_restart_writes_nothing(tmp_path: Path) -> None:
    shown: list[str] = []
    measured = measure(RUNS, tmp_path, shown.append)
    assert 0 < measured.first_jobs.last < measured.done.last
    assert measured.first_requests.of(OPERATOR) <= RUNS * REQUESTS_TO_FIRST_JOB
    assert measured.chain.writes <= RUNS * WRITES, measured.chain.requests
    assert measured.restart.writes == 0, measured.restart.requests
    for life in (measured.chain, measured.restart):
        assert 0 < life.peak_bytes < PEAK_BYTES
    assert f"{RUNS} created, {RUNS} have a Job, {RUNS} are at their last stage or done" in shown
