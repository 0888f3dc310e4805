"""How many tests each suite had and how long they took, as a table for the terminal and docs/testing.md."""

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
    """One suite that has run.

    Attributes:
        title: of the suite.
        seconds: from its first command to the end of its last.
        sessions: seconds of each session that ran beside another, by name.
        tests: how many there were, by folder below `tests`.
        skipped: how many of them did not run.
    """

    title: str
    seconds: float = 0
    sessions: dict[str, float] = field(default_factory=dict)
    tests: Counter[str] = field(default_factory=Counter)
    skipped: int = 0

    def count(self, reports: Iterable[Path]) -> None:
        """Add what these JUnit files of pytest say."""
        for report in reports:
            for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest's own
                self.tests[case.attrib["classname"].split(".")[1]] += 1
                self.skipped += case.find("skipped") is not None


def sheet(results: Sequence[Result]) -> Sheet:
    """One line a suite, and one for all."""
    lines = [
        (
            each.title,
            " + ".join(f"{count:,}" for count in each.tests.values()),
            f"{each.skipped:,}",
            ", ".join(f"{name} {_minutes(seconds)}" for name, seconds in each.sessions.items()),
            _minutes(each.seconds),
        )
        for each in results
    ]
    tests, skipped = sum(each.tests.total() for each in results), sum(each.skipped for each in results)
    total = ("all", f"{tests:,}", f"{skipped:,}", "", _minutes(sum(each.seconds for each in results)))
    return Sheet("min:s", ("suite", "tests", "of them skipped", "side by side", "in all"), (*lines, total))


def write(results: Sequence[Result]) -> None:
    """Put the table in place of what stands between the markers of docs/testing.md.

    Raises:
        BenchError: the page has no markers.
    """
    put(PAGE, BEGIN, [sheet(results)], "`make test` with everything built")


def write_fresh(seconds: float) -> None:
    """Write how long .ci/run took from nothing.

    Raises:
        BenchError: the page has no markers.
    """
    lines = Sheet("min:s", ("command", "in all"), ((".ci/run", _minutes(seconds)),))
    put(PAGE, BEGIN_FRESH, [lines], "`.ci/run` in a fresh clone with empty caches")


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
