"""What `make test` runs, and what of it side by side: a session waits for part of its time."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

TESTS: Final = Path(__file__).parents[2] / "tests"
SEPARATE_SESSIONS: Final = {
    "rest of trainer": ("tests/trainer/remote", "tests/trainer/serve", "tests/trainer/data"),
    "resume matrix": ("tests/trainer/test_resume_matrix.py",),
    "rules of the API": tuple(
        f"tests/integration/{path.name}" for path in sorted(TESTS.glob("integration/test_rules_*.py"))
    ),
}
"""Parts of the trainer's and the API server's tests in sessions of their own, so that all take as long."""
E2E: Final = "tests/e2e"
E2E_SECOND: Final = ("test_disasters.py", "test_interruptions.py", "test_queueing.py")
"""What runs on the second cluster, in this order, so that both lanes take as long."""
E2E_LAST: Final = f"{E2E}/test_rights.py"
"""Looks at what all lanes have asked of their clusters."""


@dataclass(frozen=True)
class TestSession:
    """One session of pytest.

    Attributes:
        name: what its lines begin with while another one runs.
        arguments: for pytest.
        isolated: whether in namespaces of its own, with a cluster of its own.
    """

    __test__: ClassVar = False  # pytest collects no class of this name

    name: str
    arguments: tuple[str, ...]
    isolated: bool = False


@dataclass(frozen=True)
class Suite:
    """Steps one after another; the sessions of a step run three at a time, in their order.

    Attributes:
        name: for the command line.
        title: for people.
        steps: all of it.
    """

    name: str
    title: str
    steps: tuple[tuple[TestSession, ...], ...]


def suites(records: Path) -> tuple[Suite, ...]:
    """All that `make test` runs, in order.

    Args:
        records: an empty folder in which the lanes of one suite leave something for its last step.
    """
    apart = [path for paths in SEPARATE_SESSIONS.values() for path in paths]
    return (
        Suite("unit", "unit", ((_session("tests/unit"),),)),
        Suite(
            "trainer",
            "trainer, API server, faults",
            (
                (
                    _session("tests/integration", *_ignored(apart)),
                    _session("tests/trainer", *_ignored(apart)),
                    *(TestSession(name, paths) for name, paths in SEPARATE_SESSIONS.items()),
                    _session("tests/faults"),
                ),
            ),
        ),
        Suite("e2e", "end to end", _e2e(f"--requests={records}")),
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
