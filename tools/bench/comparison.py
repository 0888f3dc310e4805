# SPDX-License-Identifier: Apache-2.0
"""Compare two programs on the same workloads: run them in alternation, print and write tables, check targets.

A comparison is a row: its programs, the columns of its tables and its targets. Its command chooses workloads.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any, NamedTuple

import typer
from rich.console import Console

from tools.bench.page import PAGE, BenchError, Sheet, put
from tools.bench.program import ProgramResult, alternate

Rounds = Sequence[ProgramResult]
"""Results of one program with one workload, one per round."""


class Workload(NamedTuple):
    """Arguments of both programs.

    Attributes:
        name: shown while the programs run, and in front of missed targets.
        arguments: arguments of both programs, before their folder.
        rows: rows of the input; 0 if no column needs them.
        size: bytes of the input; 0 if no column needs them.
    """

    name: str
    arguments: tuple[str, ...]
    rows: int = 0
    size: int = 0


class TableColumn(NamedTuple):
    """A column of a table with one row per program.

    Attributes:
        title: head of the column.
        cell: text for the rounds of a program, those of the program it is compared with, and the workload.
    """

    title: str
    cell: Callable[[Rounds, Rounds, Workload], str]


class Target(NamedTuple):
    """A bound that the measured program must keep.

    Attributes:
        figure: computes the figure from the rounds of the program and of its peer.
        text: what the figure is, after its value.
        limit: the bound.
        is_minimum: whether the figure must be at least `limit`; otherwise at most.
        form: format of figure and limit.
    """

    figure: Callable[[Rounds, Rounds], float]
    text: str
    limit: float
    is_minimum: bool = False
    form: str = ".2f"

    def problem(self, ours: Rounds, peer: Rounds) -> str | None:
        """The missed target as text; None if it is kept."""
        value = self.figure(ours, peer)
        if (value >= self.limit) if self.is_minimum else (value <= self.limit):
            return None
        bound = "at least" if self.is_minimum else "at most"
        return f"{value:{self.form}} {self.text}; the target is {bound} {self.limit:{self.form}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two programs that do the same work.

    Attributes:
        name: name of the target of make after `bench-`.
        programs: module of each program by its name; the first one is ours, the last one its peer.
        same: part of a program's output that must be equal in all rounds of both, and what differs if not.
        title: title of a table, for the workload and the rounds of a program.
        columns: columns after the name of the program.
        targets: bounds that our program must keep.
        packages: packages whose versions are written above the tables.
    """

    name: str
    programs: Mapping[str, str]
    same: tuple[Callable[[Mapping[str, Any]], object], str]
    title: Callable[[Workload, Rounds], str]
    columns: tuple[TableColumn, ...]
    targets: tuple[Target, ...]
    packages: tuple[str, ...]

    @property
    def begin(self) -> str:
        """Marker line of docs/benchmarks.md before the tables."""
        return f"<!-- Written by make bench-{self.name} from here -->"

    def sheet(self, workload: Workload, measured: Mapping[str, Rounds]) -> Sheet:
        """The table of one workload: one row per program."""
        peer = list(measured.values())[-1]
        return Sheet(
            self.title(workload, peer),
            ("", *(column.title for column in self.columns)),
            tuple(
                (name, *(column.cell(rounds, peer, workload) for column in self.columns))
                for name, rounds in measured.items()
            ),
        )

    def problems(self, workload: Workload, measured: Mapping[str, Rounds]) -> list[str]:
        """Missed targets of one workload; none if only the peer was measured."""
        of, text = self.same
        first, *others = (of(each.printed) for rounds in measured.values() for each in rounds)
        found = [text] if any(other != first for other in others) else []
        if len(measured) > 1:
            ours, peer = measured.values()
            missed = (target.problem(ours, peer) for target in self.targets)
            found += [each for each in missed if each is not None]
        return [f"{workload.name}: {each}" for each in found]

    def run(self, workloads: Iterable[Workload], rounds: int, *, page: bool, only_peer: bool = False) -> None:
        """Measure the workloads, print a table for each, and write all to docs/benchmarks.md if `page`.

        Raises:
            typer.Exit: a program failed or missed a target; the reasons are printed.
        """
        console = Console(highlight=False)
        programs = dict(list(self.programs.items())[-1:]) if only_peer else self.programs
        sheets: list[Sheet] = []
        problems: list[str] = []
        try:
            for workload in workloads:
                measured = alternate(console, workload.name, rounds, programs, *workload.arguments)
                sheets.append(self.sheet(workload, measured))
                console.print(sheets[-1].to_terminal())
                problems += self.problems(workload, measured)
            if page:
                packages = ", ".join(f"{package} {version(package)}" for package in self.packages)
                put(PAGE, self.begin, sheets, packages)
        except BenchError as error:
            problems.append(str(error))
        if problems:
            print(f"bench-{self.name}: {'; '.join(problems)}", file=sys.stderr)
            raise typer.Exit(1)


def peak_mebibytes(rounds: Rounds) -> float:
    """Maximum memory of all rounds."""
    return max(each.peak_bytes for each in rounds) / (1 << 20)


def median_seconds(rounds: Rounds) -> float:
    """Median duration of a round."""
    return median(each.seconds for each in rounds)


PEAK_MEMORY = TableColumn("peak memory, MiB", lambda rounds, *_: f"{peak_mebibytes(rounds):,.0f}")
