# SPDX-License-Identifier: Apache-2.0
"""Number of tests and duration of each suite, as a table for the terminal and docs/testing.md."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from tools.bench.page import put
from tools.bench.sheet import Sheet
from tools.bootstrap.uv import ROOT

PAGE: Final = ROOT / "docs" / "testing.md"
BEGIN: Final = "<!-- Written by make test-times from here -->"
BEGIN_FRESH: Final = "<!-- Written by make ci-times from here -->"


@dataclass
class Result:
    """Result of one suite.

    Attributes:
        title: title of the suite.
        seconds: time from the start of its first command to the end of its last.
        sessions: seconds of each parallel session, by name.
        tests: number of tests, by folder below `tests`.
        skipped: number of skipped tests.
    """

    title: str
    seconds: float = 0
    sessions: dict[str, float] = field(default_factory=dict)
    tests: Counter[str] = field(default_factory=Counter)
    skipped: int = 0

    def count(self, reports: Iterable[Path]) -> None:
        """Add the tests of these JUnit files of pytest."""
        for report in reports:
            for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest's own
                self.tests[case.attrib["classname"].split(".")[1]] += 1
                self.skipped += case.find("skipped") is not None


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


def write(results: Sequence[Result]) -> None:
    """Replace the text between the markers of docs/testing.md with the table.

    Raises:
        BenchError: the page has no markers.
    """
    put(PAGE, BEGIN, [sheet(results)], "`make test` with everything built")


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
