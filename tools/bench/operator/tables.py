# SPDX-License-Identifier: Apache-2.0
"""The results as tables for a terminal and for docs/benchmarks.md."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.bench.operator.measurement import Measured, SizeComparison
from tools.bench.operator.request_ledger import KUBELET, OPERATOR, USER, Requests
from tools.bench.page import Sheet, put
from tools.cluster.toolchain import KUBERNETES

MEBIBYTE: Final = 1 << 20
DRIVERS: Final = (USER, KUBELET)
"""Clients of the benchmark itself."""
TARGETS: Final = {
    "until every run has its first Job, s": "≤ 20 at 1,000",
    "operator requests per run until then": "≤ 10",
    "operator writes per run until it is done": "≤ 20",
    "operator: peak memory, MiB": "< 200 at 1,000",
    "restart: writes": "0",
}
"""Targets by row of the overview."""


def comparison(compared: Sequence[SizeComparison]) -> Sheet:
    """The time until every run has its first Job, compared with the peers: one column per number of runs."""
    return _sheet("Time until every run has its first Job", compared, _compared_figures, {})


def overview(compared: Sequence[SizeComparison]) -> Sheet:
    """The figures of the operator: one column per number of runs."""
    return _sheet("FineTuneJobs", compared, lambda each: _figures(each.operator), TARGETS)


def _sheet(
    title: str,
    compared: Sequence[SizeComparison],
    figures: Callable[[SizeComparison], Iterator[tuple[str, str]]],
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
    """Requests per run from creation to completion, by client and verb."""
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
    return Sheet(f"Requests per run ({measured.runs:,} runs)", ("client", *verbs, "all"), rows)


def _compared_figures(each: SizeComparison) -> Iterator[tuple[str, str]]:
    runs, floor, peer, ours = each.runs, each.floor, each.peer, each.operator
    trainer, jobset = peer.peak_bytes
    yield "FineTuneJobs, s", f"{ours.first_jobs.last:.1f}"
    yield "TrainJobs (Kubeflow Trainer with JobSet), s", f"{peer.jobs.last:.1f}"
    yield "bare Jobs without an operator (lower bound), s", f"{floor.jobs.last:.1f}"
    yield "FineTuneJobs relative to TrainJobs", f"{ours.first_jobs.last / peer.jobs.last:.2f}"
    yield "requests of all clients per FineTuneJob", _rate(_all_requests(ours.first_requests), runs)
    yield "requests of all clients per TrainJob", _rate(_all_requests(peer.requests), runs)
    yield "requests of all clients per bare Job", _rate(_all_requests(floor.requests), runs)
    yield "processor time: operator, s", f"{ours.first_usage.operator:.1f}"
    yield "processor time: Trainer and JobSet, s", f"{peer.processor_seconds:.1f}"
    yield "peak memory: operator, until every run is done, MiB", f"{ours.chain.peak_bytes / MEBIBYTE:.0f}"
    yield "peak memory: Trainer + JobSet, MiB", f"{trainer / MEBIBYTE:.0f} + {jobset / MEBIBYTE:.0f}"


def _figures(measured: Measured) -> Iterator[tuple[str, str]]:
    first, done, runs = measured.first_jobs, measured.done, measured.runs
    yield "until every run has its first Job, s", f"{first.last:.1f}"
    yield "until one run has its first Job: p50 / p99, s", f"{first.p50:.2f} / {first.p99:.2f}"
    yield "operator requests per run until then", _rate(measured.first_requests.of(OPERATOR), runs)
    yield "requests of all clients per run until then", _rate(_all_requests(measured.first_requests), runs)
    usage = measured.first_usage
    yield (
        "processor time until then: operator / control plane / benchmark, s",
        f"{usage.operator:.1f} / {usage.control_plane:.1f} / {usage.bench:.1f}",
    )
    yield "until every run is done, s", f"{done.last:.1f}"
    yield "until one run is done: p50 / p99, s", f"{done.p50:.2f} / {done.p99:.2f}"
    yield "operator writes per run until it is done", _rate(measured.chain.writes, runs)
    yield (
        "requests of all clients per run until it is done",
        _rate(_all_requests(measured.chain.requests), runs),
    )
    yield "operator: processor time, s", f"{measured.chain.usage.operator:.1f}"
    yield "operator: peak memory, MiB", f"{measured.chain.peak_bytes / MEBIBYTE:.0f}"
    yield "restart: until every object is reconciled, s", f"{measured.restart_seconds:.1f}"
    yield "restart: writes", f"{measured.restart.writes}"
    yield "restart: operator requests", f"{measured.restart.requests.of(OPERATOR)}"
    yield "restart: peak memory, MiB", f"{measured.restart.peak_bytes / MEBIBYTE:.0f}"
    yield "control plane: processor time, s", f"{measured.chain.usage.control_plane:.1f}"
    yield "benchmark: processor time, s", f"{measured.chain.usage.bench:.1f}"
    yield "other programs: processor time, s", f"{measured.chain.usage.foreign:.1f}"


def _all_requests(requests: Requests) -> int:
    """Number of requests of all clients except the benchmark itself."""
    return requests.by.total() - requests.of(*DRIVERS)


def _rate(count: int, runs: int) -> str:
    return f"{count / runs:.2f}" if count else "-"


BEGIN: Final = "<!-- Written by make bench-operator from here -->"


def write(page: Path, compared: Sequence[SizeComparison]) -> None:
    """Replace the tables between the markers of `page`.

    Raises:
        BenchError: the page has no markers.
    """
    sheets = [comparison(compared), overview(compared), *(requests(each.operator) for each in compared)]
    put(page, BEGIN, sheets, f"Kubernetes {KUBERNETES.version}")
