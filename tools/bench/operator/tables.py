"""What was measured, as tables for a terminal and for docs/benchmarks.md."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from tools.bench.operator.comparison import Comparison
from tools.bench.operator.measurement import Measured
from tools.bench.operator.requestledger import KUBELET, OPERATOR, USER, Requests
from tools.bench.sheet import Sheet

MEBIBYTE: Final = 1 << 20
DRIVERS: Final = (USER, KUBELET)
"""Clients that belong to the measurement."""
TARGETS: Final = {
    "until each run has its first Job, s": "≤ 20 at 1,000",
    "requests a run until then, of the operator": "≤ 10",
    "writes a run of the operator, to the end": "≤ 20",
    "operator: peak memory, MiB": "< 200 at 1,000",
    "restart: writes": "0",
}


def comparison(compared: Sequence[Comparison]) -> Sheet:
    """Until each run has its first Job, beside others: one column a number of runs."""
    return _sheet("Until each has its first Job", compared, _beside_others, {})


def overview(compared: Sequence[Comparison]) -> Sheet:
    """The operator alone: one column a number of runs."""
    return _sheet("FineTuneJobs", compared, lambda each: _figures(each.operator), TARGETS)


def _sheet(
    title: str,
    compared: Sequence[Comparison],
    figures: Callable[[Comparison], Iterator[tuple[str, str]]],
    targets: Mapping[str, str],
) -> Sheet:
    columns = [dict(figures(each)) for each in compared]
    last = ("target",) if targets else ()
    rows = tuple(
        (name, *(column[name] for column in columns), *(targets.get(name, "") for _ in last))
        for name in columns[0]
    )
    return Sheet(title, ("", *(f"{each.runs:,}" for each in compared), *last), rows)


def requests(measured: Measured) -> Sheet:
    """Requests a run of the whole chain, by client and verb."""
    count = measured.chain.requests.by
    verbs = sorted({verb for _, verb in count})
    clients = sorted({client for client, _ in count}, key=lambda client: -measured.chain.requests.of(client))
    rows = tuple(
        (
            client,
            *(_rate(count[client, verb], measured.runs) for verb in verbs),
            _rate(measured.chain.requests.of(client), measured.runs),
        )
        for client in clients
    )
    return Sheet(f"Requests a run, of {measured.runs:,}", ("client", *verbs, "all"), rows)


def _beside_others(each: Comparison) -> Iterator[tuple[str, str]]:
    runs, floor, peer, ours = each.runs, each.floor, each.peer, each.operator
    trainer, jobset = peer.peak_bytes
    yield "FineTuneJobs, s", f"{ours.first_jobs.last:.1f}"
    yield "TrainJobs of Kubeflow Trainer and JobSet, s", f"{peer.jobs.last:.1f}"
    yield "bare Jobs, no operator: the floor, s", f"{floor.jobs.last:.1f}"
    yield "FineTuneJobs in times of TrainJobs", f"{ours.first_jobs.last / peer.jobs.last:.2f}"
    yield "requests of all: a FineTuneJob", _rate(_all(ours.first_requests), runs)
    yield "requests of all: a TrainJob", _rate(_all(peer.requests), runs)
    yield "requests of all: a bare Job", _rate(_all(floor.requests), runs)
    yield "processor time: operator, s", f"{ours.first_usage.operator:.1f}"
    yield "processor time: Trainer and JobSet, s", f"{peer.processor_seconds:.1f}"
    yield "peak memory: operator, to the end of the chain, MiB", f"{ours.chain.peak_bytes / MEBIBYTE:.0f}"
    yield "peak memory: Trainer + JobSet, MiB", f"{trainer / MEBIBYTE:.0f} + {jobset / MEBIBYTE:.0f}"


def _figures(measured: Measured) -> Iterator[tuple[str, str]]:
    first, done, runs = measured.first_jobs, measured.done, measured.runs
    yield "until each run has its first Job, s", f"{first.last:.1f}"
    yield "of one run: p50 / p99, s", f"{first.p50:.2f} / {first.p99:.2f}"
    yield "requests a run until then, of the operator", _rate(measured.first_requests.of(OPERATOR), runs)
    yield "requests a run until then, of all", _rate(_all(measured.first_requests), runs)
    spent = measured.first_usage
    yield (
        "processor time until then: operator / control plane / measurement, s",
        f"{spent.operator:.1f} / {spent.control_plane:.1f} / {spent.bench:.1f}",
    )
    yield "until each run is done, s", f"{done.last:.1f}"
    yield "of one run, to its end: p50 / p99, s", f"{done.p50:.2f} / {done.p99:.2f}"
    yield "writes a run of the operator, to the end", _rate(measured.chain.writes, runs)
    yield "requests a run of all, to the end", _rate(_all(measured.chain.requests), runs)
    yield "operator: processor time, s", f"{measured.chain.usage.operator:.1f}"
    yield "operator: peak memory, MiB", f"{measured.chain.peak_bytes / MEBIBYTE:.0f}"
    yield "restart: until all is looked at, s", f"{measured.restart_seconds:.1f}"
    yield "restart: writes", f"{measured.restart.writes}"
    yield "restart: requests of the operator", f"{measured.restart.requests.of(OPERATOR)}"
    yield "restart: peak memory, MiB", f"{measured.restart.peak_bytes / MEBIBYTE:.0f}"
    yield "control plane: processor time, s", f"{measured.chain.usage.control_plane:.1f}"
    yield "measurement: processor time, s", f"{measured.chain.usage.bench:.1f}"
    yield "other programs: processor time, s", f"{measured.chain.usage.foreign:.1f}"


def _all(requests: Requests) -> int:
    """Those of everybody but the measurement itself."""
    return requests.by.total() - requests.of(*DRIVERS)


def _rate(count: int, runs: int) -> str:
    return f"{count / runs:.2f}" if count else "-"
