# SPDX-License-Identifier: Apache-2.0
"""Measure one size: bare Jobs, Kubeflow Trainer and the operator, one after another on one machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.bench.operator.floor import Floor, measure_floor
from tools.bench.operator.kubeflow import Peer, measure_peer
from tools.bench.operator.measurement import Measured, measure


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results for `runs` bare Jobs, TrainJobs and FineTuneJobs."""

    runs: int
    floor: Floor
    peer: Peer
    operator: Measured


def compare(runs: int, folder: Path, progress: Callable[[str], None]) -> Comparison:
    """Measure all three workloads, each on an empty control plane of its own.

    Args:
        runs: number of objects of each workload.
        folder: folder for the operator's log.
        progress: called with a line of text when the progress changes.

    Raises:
        BenchError: a workload was not completed.
        ClusterError: a control plane did not start, or a program could not be built.
    """
    progress("bare Jobs")
    floor = measure_floor(runs)
    progress("TrainJobs of Kubeflow")
    peer = measure_peer(runs)
    return Comparison(runs, floor, peer, measure(runs, folder, progress))
