# SPDX-License-Identifier: Apache-2.0
"""The tables of the results, written to docs/benchmarks.md."""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from scipy import stats

from tools.bench.page import Sheet, put
from tools.peers import vllm
from tools.peers.serving.streams import StreamsPair, StreamsResult

BEGIN: Final = "<!-- Written by make bench-serving from here -->"
STREAMS: Final = (1, 8, 32)
"""Numbers of simultaneous streams."""
CONFIDENCE: Final = 0.95


class Ratio(NamedTuple):
    """Geometric mean of the ratios of alternating pairs, with its interval at 95 %."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def mean_ratio(*samples: Iterable[float]) -> Ratio:
    """Mean of at least two ratios, or product of the means of several such samples with Welch's interval."""
    logs = [[math.log(each) for each in ratios] for ratios in samples]
    mean = sum(sum(each) / len(each) for each in logs)
    variances = [max(stats.sem(each), 1e-12) ** 2 for each in logs]
    freedom = sum(variances) ** 2 / sum(
        variance**2 / (len(each) - 1) for variance, each in zip(variances, logs, strict=True)
    )
    low, high = stats.t.interval(CONFIDENCE, freedom, loc=mean, scale=math.sqrt(sum(variances)))
    return Ratio(math.exp(mean), math.exp(low), math.exp(high))


def starts_sheet(starts: Mapping[str, Mapping[str, float]]) -> Sheet:
    """One row per engine."""
    columns = ("weights not in the page cache, s", "again, s")
    rows = tuple(
        (name, *(f"{each[kind]:.1f}" if kind in each else "" for kind in ("cold", "warm")))
        for name, each in starts.items()
    )
    return Sheet("From the start of the process to the first token", ("", *columns), rows)


def speeds_sheet(speeds: Mapping[str, Mapping[int, StreamsResult]]) -> Sheet:
    """One row per server: tokens per second of all streams together."""
    rows = tuple(
        (
            name,
            *(f"{found[streams].rate:,.1f}" for streams in STREAMS),
            *(f"{found[streams].first_token_seconds:.2f}" for streams in STREAMS),
        )
        for name, found in speeds.items()
    )
    numbers = [f"{streams} stream{'s' * (streams > 1)}" for streams in STREAMS]
    columns = (
        *(f"tokens/s, {each}" for each in numbers),
        *(f"s to the first token, {each}" for each in numbers),
    )
    return Sheet("Gemma 3 270M, bfloat16, one thread", ("", *columns), rows)


def overhead_sheet(compared: Mapping[str, Sequence[StreamsPair]], together: Mapping[str, Ratio]) -> Sheet:
    """One row per comparison.

    Args:
        compared: pairs of measurements, by what the second one has in addition.
        together: ratios of several additions.
    """
    rows = [
        (
            name,
            str(len(pairs)),
            str(mean_ratio(pair.ratio for pair in pairs)),
            _cost([pair.alone for pair in pairs]),
            _cost([pair.endpoint for pair in pairs]),
        )
        for name, pairs in compared.items()
    ]
    rows += [(name, "", str(found), "", "") for name, found in together.items()]
    columns = (
        "",
        "pairs",
        "tokens/s relative to those without it (95 %)",
        "processor s per 1,000 tokens without it",
        "processor s per 1,000 tokens with it",
    )
    return Sheet(f"What an endpoint adds to vLLM, {STREAMS[-1]} streams", columns, tuple(rows))


def product(one: Sequence[StreamsPair], other: Sequence[StreamsPair]) -> Ratio:
    """Ratio of two additions together that were measured one after the other."""
    return mean_ratio(*([pair.ratio for pair in pairs] for pairs in (one, other)))


def rollouts_sheet(rollouts: Mapping[str, Sequence[float]]) -> Sheet:
    """One row per strategy."""
    rows = tuple(
        (name, str(len(found)), f"{median(found):.1f}", f"{max(found):.1f}")
        for name, found in rollouts.items()
    )
    columns = ("strategy", "rollouts", "median, s", "longest, s")
    return Sheet("From a changed spec to Ready, one replica of the built-in engine", columns, rows)


def _cost(results: Sequence[StreamsResult]) -> str:
    return f"{median(each.cost for each in results):.2f}" if results[0].processor_seconds else ""


def write(page: Path, sheets: Sequence[Sheet]) -> None:
    """Replace the text between the markers of `page` with the tables.

    Raises:
        BenchError: the page has no markers.
    """
    packages = [f"{package} {version(package)}" for package in ("torch", "transformers")]
    put(page, BEGIN, sheets, ", ".join([f"vLLM {vllm.version()}", *packages]))


def pairs_of(recorded: Sequence[Sequence[Mapping[str, Any]]]) -> list[StreamsPair]:
    """Pairs from the JSON of a record."""
    return [StreamsPair(*(StreamsResult(**each) for each in pair)) for pair in recorded]
