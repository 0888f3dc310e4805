# SPDX-License-Identifier: Apache-2.0
"""python -m tools.suites [--suite NAME] [--page] [--minutes N] [-- ARGUMENTS OF PYTEST]"""

import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bootstrap.uv import ROOT
from tools.cluster.linux_namespaces import isolated
from tools.suites.durations import Result, print_results, sheet, slowest, write
from tools.suites.sessions import Suite, TestSession, run_concurrently, suites

PYTEST: Final = (
    *(sys.executable, "-m", "pytest", "-m", "not full"),
    *("--no-header", "--durations=15", "--durations-min=2"),
)

app = typer.Typer(add_completion=False)


@app.command()
def run_suites(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Arguments for pytest, such as -k resume.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Run only this suite.")] = None,
    page: Annotated[bool, typer.Option("--page", help="Replace the times in docs/testing.md.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Start no test after this time, and fail if any is left.")
    ] = None,
) -> None:
    """Run all test suites, also after one that failed, and print the duration of each."""
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    results: list[Result] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        selected = [each for each in suites(folder) if suite in (None, each.name)]
        outcomes = [_passes(each, folder, arguments or (), ends, results) for each in selected]
    print_results(Console(highlight=False), (slowest(results), sheet(results)), results)
    if not all(outcomes):
        raise typer.Exit(1)
    if page:
        write(results)


def _passes(
    suite: Suite, folder: Path, arguments: Sequence[str], ends: float | None, results: list[Result]
) -> bool:
    """Run one suite and append its result to `results`; returns whether it passed.

    After `ends` (monotonic seconds) it starts no test, and has not passed.
    """
    result = Result(suite.title)
    results.append(result)
    started = time.monotonic()
    if suite.targets and subprocess.run(["make", *suite.targets], cwd=ROOT, check=False).returncode:
        result.failures.append(f"{suite.title}: make {' '.join(suite.targets)} failed")
        return False
    passed = True
    for number, sessions in enumerate(suite.steps):
        reports = [folder / f"{suite.name}-{number}-{each}.xml" for each in range(len(sessions))]
        finished = run_concurrently(
            {
                session.name: _command(session, report, arguments)
                for session, report in zip(sessions, reports, strict=True)
            },
            partial(_limit, ends),
        )
        for name, each in finished.items():
            passed &= result.end(name, each.status)
        result.count(report for report in reports if report.exists())
        if len(sessions) > 1:
            result.sessions |= {name: each.seconds for name, each in finished.items()}
    result.seconds = time.monotonic() - started
    if ends is not None and time.monotonic() > ends:
        result.failures.append(f"{suite.title}: the time for all suites was over before its last test")
        passed = False
    return result.tests.total() > 0 and passed


def _limit(ends: float | None) -> tuple[str, ...]:
    """Options of a session that starts now."""
    return () if ends is None else (f"--session-timeout={max(1, ends - time.monotonic()):.0f}",)


def _command(session: TestSession, report: Path, arguments: Sequence[str]) -> list[str]:
    command = [*PYTEST, f"--junit-xml={report}", *session.arguments, *arguments]
    return isolated(command) if session.isolated else command


if __name__ == "__main__":
    app()
