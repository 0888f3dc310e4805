"""One size: the floor, the peer and the operator, one after another on the same machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.bench.operator.floor import Floor, measure_floor
from tools.bench.operator.kubeflow import Peer, measure_peer
from tools.bench.operator.measurement import Measured, measure


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results of `runs` bare Jobs, TrainJobs and FineTuneJobs."""

    runs: int
    floor: Floor
    peer: Peer
    operator: Measured


def compare(runs: int, folder: Path, progress: Callable[[str], None]) -> Comparison:
    """Measure all three, each on an empty control plane of its own.

    Args:
        runs: how many objects.
        folder: where the operator's log goes.
        progress: called with a line of text whenever there is something new.

    Raises:
        BenchError: not all came to their end.
        ClusterError: there is no control plane, or a program could not be built.
    """
    progress("bare Jobs")
    floor = measure_floor(runs)
    progress("TrainJobs of Kubeflow")
    peer = measure_peer(runs)
    return Comparison(runs, floor, peer, measure(runs, folder, progress))
