# SPDX-License-Identifier: Apache-2.0
"""A small run of the operator's benchmark: figures that do not depend on the machine stay within bounds."""

import asyncio
from pathlib import Path

import pytest

from tools.bench.operator.control_planes import control_plane
from tools.bench.operator.crowds.__main__ import CROWDS
from tools.bench.operator.crowds.crowd import CrowdScene
from tools.bench.operator.measurement import measure
from tools.bench.operator.request_ledger import OPERATOR
from tools.bootstrap.uv import ROOT

RUNS = 10
MAX_REQUESTS_TO_FIRST_JOB = 4
"""Operator requests per run: its Job, its status, an Event, and a lookup, unless the runs share one."""
MAX_SHARED_REQUESTS = 5
"""Operator requests that all runs need together."""
MAX_WRITES = 20
"""Operator writes per run from creation to promotion, with Events and without leases."""
MAX_PEAK_BYTES = 140 << 20
"""1.5 times the memory for these few runs; docs/benchmarks.md has the target at 1,000 runs."""


def test_a_run_costs_few_requests_and_a_restart_writes_nothing(tmp_path: Path) -> None:
    shown: list[str] = []
    measured = measure(RUNS, tmp_path, shown.append)
    assert 0 < measured.first_jobs.last < measured.done.last
    max_requests = RUNS * MAX_REQUESTS_TO_FIRST_JOB + MAX_SHARED_REQUESTS
    assert measured.first_requests.of(OPERATOR) <= max_requests, measured.first_requests
    assert measured.chain.writes <= RUNS * MAX_WRITES, measured.chain.requests
    assert measured.restart.writes == 0, measured.restart.requests
    for process in (measured.chain, measured.restart):
        assert 0 < process.peak_bytes < MAX_PEAK_BYTES
    assert f"{RUNS} created, {RUNS} with a Job, {RUNS} at their last stage or done" in shown


@pytest.mark.full
@pytest.mark.parametrize("name", CROWDS)
def test_a_small_crowd_stays_below_its_ceilings_of_requests_and_writes(name: str, tmp_path: Path) -> None:
    crowd = CROWDS[name]
    with control_plane("crowd") as plane:
        plane.kubectl.define(ROOT / "crds")
        stage = CrowdScene(plane, 50, tmp_path / "operator.log", lambda _: None)
        asyncio.run(crowd.measure(stage))
    assert stage.phases.keys() == crowd.ceilings.keys()
    for phase, figures in stage.phases.items():
        assert figures.writes <= crowd.ceilings[phase].writes, phase
        assert figures.requests <= crowd.ceilings[phase].requests, phase
