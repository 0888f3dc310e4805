"""python -m hack.suites [--suite NAME] [--page] [-- ARGUMENTS OF PYTEST]"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import pytest
import typer
from rich.console import Console

from hack.cluster.isolation import isolated
from hack.suites.lanes import side_by_side
from hack.suites.plan import Lane, Suite, suites
from hack.suites.report import Result, sheet, write

PYTEST: Final = (
    *(sys.executable, "-m", "pytest", "-m", "not full"),
    *("--no-header", "--durations=15", "--durations-min=2"),
)
FINE: Final = frozenset({pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED})

app = typer.Typer(add_completion=False)


@app.command()
def run_suites(
    arguments: Annotated[list[str] | None, typer.Argument(help="For pytest, such as -k resume.")] = None,
    suite: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    page: Annotated[
        bool, typer.Option("--page", help="The times take the place of those in docs/testing.md.")
    ] = False,
) -> None:
    """Run the test suites up to the first that fails, and print how long each took."""
    results: list[Result] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        chosen = [each for each in suites(folder) if suite in (None, each.name)]
        good = all(_passes(each, folder, arguments or (), results) for each in chosen)
    Console(highlight=False).print(sheet(results).to_terminal())
    if not good:
        raise typer.Exit(1)
    if page:
        write(results)


def _passes(suite: Suite, folder: Path, arguments: Sequence[str], results: list[Result]) -> bool:
    """Run one suite, and add its result to the others."""
    result = Result(suite.title)
    results.append(result)
    started = time.monotonic()
    statuses = []
    for number, lanes in enumerate(suite.steps):
        reports = [folder / f"{suite.name}-{number}-{lane}.xml" for lane in range(len(lanes))]
        ended = side_by_side(
            [_command(lane, report, arguments) for lane, report in zip(lanes, reports, strict=True)]
        )
        statuses += [each.status for each in ended]
        result.count(report for report in reports if report.exists())
        if len(lanes) > 1:
            result.lanes += [each.seconds for each in ended]
    result.seconds = time.monotonic() - started
    return result.tests.total() > 0 and FINE.issuperset(statuses)


def _command(lane: Lane, report: Path, arguments: Sequence[str]) -> list[str]:
    command = [*PYTEST, f"--junit-xml={report}", *lane.arguments, *arguments]
    return isolated(command) if lane.isolated else command


if __name__ == "__main__":
    app()
