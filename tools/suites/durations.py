# SPDX-License-Identifier: Apache-2.0
"""Number of tests and duration of each suite, as tables for the terminal and docs/testing.md."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest
from rich.console import Console

from tools.bench.page import Sheet, put
from tools.bootstrap.uv import ROOT

PAGE: Final = ROOT / "docs" / "testing.md"
BEGIN: Final = "<!-- Written by make test-times from here -->"
BEGIN_FRESH: Final = "<!-- Written by make ci-times from here -->"
SLOWEST: Final = 20
"""Rows of the table of the slowest modules."""
PASSED: Final = frozenset({pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED})


@dataclass
class Result:
    """Result of one suite.

    Attributes:
        title: title of the suite.
        seconds: time from the start of its first command to the end of its last.
        sessions: seconds of each parallel session, by name.
        tests: number of tests, by folder below `tests`.
        modules: seconds of the tests of each module and of their fixtures.
        skipped: number of skipped tests.
        failures: failed tests, as `module::test` with the first line of the message, and sessions that
            ended for another reason, such as a signal.
    """

    title: str
    seconds: float = 0
    sessions: dict[str, float] = field(default_factory=dict)
    tests: Counter[str] = field(default_factory=Counter)
    modules: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    def end(self, session: str, status: int) -> bool:
        """Record the exit status of one pytest session; returns whether its tests passed."""
        passed = status in PASSED
        if not passed and status != pytest.ExitCode.TESTS_FAILED:
            self.failures.append(f"{session}: pytest ended with status {status}")
        return passed

    def count(self, reports: Iterable[Path]) -> None:
        """Add the tests of these JUnit files of pytest."""
        for report in reports:
            for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest's own
                if "name" not in case.attrib:  # pytest was interrupted in its test
                    continue
                name, module = case.attrib["name"], case.attrib["classname"]
                if module:  # pytest writes a module that cannot be imported as a test without one
                    self.tests[module.split(".")[1]] += 1
                    self.modules[module] += float(case.get("time", 0))
                self.skipped += case.find("skipped") is not None
                for outcome in (*case.iterfind("failure"), *case.iterfind("error")):
                    message = outcome.get("message", "").partition("\n")[0]
                    self.failures.append(f"{module and f'{module}::'}{name}: {message}")


def sheet(results: Sequence[Result]) -> Sheet:
    """One row per suite, and one for the total."""
    lines = [
        (
            each.title,
            " + ".join(f"{count:,}" for count in each.tests.values()),
            f"{each.skipped:,}",
            ", ".join(f"{name} {minutes(seconds)}" for name, seconds in each.sessions.items()),
            minutes(each.seconds),
        )
        for each in results
    ]
    tests, skipped = sum(each.tests.total() for each in results), sum(each.skipped for each in results)
    total = ("all", f"{tests:,}", f"{skipped:,}", "", minutes(sum(each.seconds for each in results)))
    return Sheet(
        "Duration, min:s", ("suite", "tests", "skipped", "parallel sessions", "total"), (*lines, total)
    )


def slowest(results: Sequence[Result]) -> Sheet:
    """The modules whose tests and fixtures take longest, beside the other sessions."""
    taken = sorted(
        ((seconds, module, each.title) for each in results for module, seconds in each.modules.items()),
        reverse=True,
    )
    rows = tuple((module, suite, minutes(seconds)) for seconds, module, suite in taken[:SLOWEST])
    return Sheet(
        f"The {SLOWEST} slowest modules beside the other sessions, min:s", ("module", "suite", "total"), rows
    )


def print_results(console: Console, tables: Iterable[Sheet], results: Iterable[Result]) -> None:
    """Print tables of results, then a line for each failed test, because a log is read from its end."""
    for table in tables:
        console.print(table.to_terminal())
    for failure in chain.from_iterable(each.failures for each in results):
        console.print(f"FAILED {failure}", markup=False, soft_wrap=True)


def write(results: Sequence[Result]) -> None:
    """Replace the text between the markers of docs/testing.md with the tables.

    Raises:
        BenchError: the page has no markers.
    """
    put(PAGE, BEGIN, [sheet(results), slowest(results)], "`make test` with everything built")


def write_fresh(seconds: float) -> None:
    """Write the duration of .ci/run in a fresh clone.

    Raises:
        BenchError: the page has no markers.
    """
    table = Sheet("Duration, min:s", ("command", "total"), ((".ci/run", minutes(seconds)),))
    put(PAGE, BEGIN_FRESH, [table], "`.ci/run` in a fresh clone with empty caches")


def minutes(seconds: float) -> str:
    """A duration as min:s."""
    whole, rest = divmod(round(seconds), 60)
    return f"{whole}:{rest:02}"
