# SPDX-License-Identifier: Apache-2.0
"""The suites of `make test` and their pytest sessions, which run in parallel because each waits at times."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from tools.bootstrap.uv import ROOT
from tools.cluster.processes import WITH_PARENT

MAX_CONCURRENT: Final = 3


@dataclass(frozen=True)
class LaneResult:
    """Exit status and duration of one command."""

    status: int
    seconds: float


def run_concurrently(
    commands: Mapping[str, Sequence[str]], options: Callable[[], Sequence[str]] = tuple
) -> dict[str, LaneResult]:
    """Run named commands in order, MAX_CONCURRENT at a time, each with the options at its start.

    If there are several, each output line begins with the name of its command. After Ctrl-C, which the
    commands receive too, the function waits for the running commands and starts no other.
    """
    interrupted = threading.Event()
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        named = len(commands) > 1
        running = {
            name: pool.submit(_run, command, options, name * named, interrupted)
            for name, command in commands.items()
        }
        try:
            return {name: each.result() for name, each in running.items()}
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _run(
    command: Sequence[str],
    options: Callable[[], Sequence[str]],
    name: str,
    interrupted: threading.Event,
) -> LaneResult:
    """Run a command, unless one has ended by Ctrl-C, which may be before the main thread knows of it."""
    started = time.monotonic()
    if interrupted.is_set():
        return LaneResult(-signal.SIGINT, 0)
    with subprocess.Popen(
        [*WITH_PARENT, *command, *options()],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE if name else None,
        stderr=subprocess.STDOUT if name else None,
    ) as child:
        for line in child.stdout or ():
            sys.stdout.write(f"{name}  {line}")
            sys.stdout.flush()
        status = child.wait()
    if status == -signal.SIGINT:
        interrupted.set()
    return LaneResult(status, time.monotonic() - started)


TESTS: Final = Path(__file__).parents[2] / "tests"


def _matching(pattern: str) -> tuple[str, ...]:
    """Paths of test modules, such as `tests/unit/test_names.py`."""
    return tuple(f"tests/{path.relative_to(TESTS)}" for path in sorted(TESTS.glob(pattern)))


SEPARATE_SESSIONS: Final = {
    "training": _matching("trainer/test_train_*.py"),
    "preflight": _matching("trainer/test_preflight_*.py"),
    "rest of trainer": ("tests/trainer/remote", "tests/trainer/serve", "tests/trainer/data"),
    "evaluation": _matching("trainer/test_evaluate*.py"),
    "resume matrix": ("tests/trainer/test_resume_matrix.py",),
    "rules of the API": _matching("integration/test_rules_*.py"),
}
"""Tests of trainer and API server in sessions of their own, so that all sessions take equally long."""
UNIT_SECOND: Final = "tests/unit/operator"
"""Unit tests in a session of their own, so that both cores work."""
E2E: Final = "tests/e2e"
E2E_SECOND: Final = (
    "test_disasters.py",
    "test_interruptions.py",
    "test_multinode.py",
    "test_queueing.py",
    "test_strategies.py",
)
"""Modules that run on the second cluster, in this order, so that both lanes take equally long."""
E2E_LAST: Final = f"{E2E}/test_rights.py"
"""Module that checks the requests of all lanes."""


@dataclass(frozen=True)
class TestSession:
    """One pytest session.

    Attributes:
        name: prefix of its output lines while other sessions run.
        arguments: arguments of pytest.
        isolated: whether it runs in its own namespaces with its own cluster.
    """

    __test__: ClassVar = False  # pytest collects no class of this name

    name: str
    arguments: tuple[str, ...]
    isolated: bool = False


@dataclass(frozen=True)
class Suite:
    """Steps that run one after another; the sessions of a step run in parallel.

    Attributes:
        name: name on the command line.
        title: name in tables.
        steps: sessions of each step, in order.
        targets: targets of make that it needs, made before its first step.
    """

    name: str
    title: str
    steps: tuple[tuple[TestSession, ...], ...]
    targets: tuple[str, ...] = ()


def suites(records: Path) -> tuple[Suite, ...]:
    """All suites of `make test`, in order.

    Args:
        records: an empty folder in which the lanes of a suite leave records for its last step.
    """
    separate = [path for paths in SEPARATE_SESSIONS.values() for path in paths]
    return (
        Suite("unit", "unit", ((_session("tests/unit", *_ignored([UNIT_SECOND])), _session(UNIT_SECOND)),)),
        Suite(
            "trainer",
            "trainer, API server, faults",
            (
                (
                    _session("tests/integration", *_ignored(separate)),
                    _session("tests/trainer", *_ignored(separate)),
                    *(TestSession(name, paths) for name, paths in SEPARATE_SESSIONS.items()),
                    _session("tests/faults"),
                ),
            ),
        ),
        # An idle cluster takes processor time, so the other suites run before it starts.
        Suite("e2e", "end to end", _e2e(f"--requests={records}"), targets=("cluster", "images")),
    )


def _e2e(records: str) -> tuple[tuple[TestSession, ...], ...]:
    if os.environ.get("KUBE_CONTEXT"):
        return ((_session(E2E),),)
    second = tuple(f"{E2E}/{name}" for name in E2E_SECOND)
    return (
        (
            TestSession("lane 1", (E2E, records, *_ignored((*second, E2E_LAST)))),
            TestSession("lane 2", (*second, records), isolated=True),
        ),
        (_session(E2E_LAST, records),),
    )


def _session(path: str, *options: str) -> TestSession:
    return TestSession(path, (path, *options))


def _ignored(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"--ignore={path}" for path in paths)
