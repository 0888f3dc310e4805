# SPDX-License-Identifier: Apache-2.0
"""The tables of the results, written to docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

from tools.bench.page import put
from tools.bench.program import ProgramResult
from tools.bench.sheet import Sheet

BEGIN: Final = "<!-- Written by make bench-train from here -->"
STEPS_BETWEEN_SAVES: Final = 100


def seconds_per_step(rounds: Sequence[ProgramResult]) -> float:
    """Median over the rounds, without the first step, which warms up."""
    return float(median(each.printed["seconds"] / (each.printed["steps"] - 1) for each in rounds))


def rate(rounds: Sequence[ProgramResult]) -> float:
    """Tokens per second."""
    printed = rounds[0].printed
    tokens: float = printed["tokens"] / printed["steps"]
    return tokens / seconds_per_step(rounds)


def save_share(rounds: Sequence[ProgramResult]) -> float:
    """Share of the time that training waits for saves, one every STEPS_BETWEEN_SAVES steps."""
    save = _save_seconds(rounds)
    return save / (save + STEPS_BETWEEN_SAVES * seconds_per_step(rounds))


def sheet(workload: str, measured: Mapping[str, Sequence[ProgramResult]]) -> Sheet:
    """One row per program: medians over its rounds, and the maximum of the peak memory."""
    (ours, peer) = measured.values()
    printed = ours[0].printed
    lines = [
        (
            name,
            f"{rate(rounds):,.0f}",
            f"{rate(rounds) / rate(peer):.2f}",
            f"{seconds_per_step(rounds):.2f}",
            f"{max(each.peak_bytes for each in rounds) / (1 << 20):,.0f}",
            f"{_save_seconds(rounds):.2f}" if rounds is ours else "",
            f"{save_share(rounds):.2%}" if rounds is ours else "",
        )
        for name, rounds in measured.items()
    ]
    return Sheet(
        f"{workload}: {printed['steps']} steps, {printed['tokens']:,} tokens, {len(ours)} rounds",
        (
            "",
            "tokens/s",
            "relative to TRL",
            "s per step",
            "peak memory, MiB",
            "s paused per save",
            "share of pauses, save every 100 steps",
        ),
        tuple(lines),
    )


def write(page: Path, sheets: Sequence[Sheet]) -> None:
    """Replace the text between the markers of `page` with the tables.

    Raises:
        BenchError: the page has no markers.
    """
    packages = ("torch", "transformers", "peft", "trl")
    put(page, BEGIN, sheets, ", ".join(f"{package} {version(package)}" for package in packages))


def _save_seconds(rounds: Sequence[ProgramResult]) -> float:
    return float(median(seconds for each in rounds for seconds in each.printed["save_seconds"]))
