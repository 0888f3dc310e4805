"""What `make test` runs, and which of it side by side: each lane leaves a core idle for part of its time."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TRAINER_BESIDE_INTEGRATION: Final = ("tests/trainer/data", "tests/trainer/remote", "tests/trainer/serve")
"""The part of the trainer's tests that follows those of the API server, so that both lanes take as long."""
E2E: Final = "tests/e2e"
E2E_SECOND: Final = ("test_interruptions.py", "test_multinode.py", "test_queueing.py")
"""What runs on the second cluster, in this order, so that both lanes take as long."""
E2E_LAST: Final = f"{E2E}/test_rights.py"
"""Looks at what all lanes have asked of their clusters."""


@dataclass(frozen=True)
class Lane:
    """One session of pytest.

    Attributes:
        arguments: what it runs.
        isolated: whether in namespaces of its own, with a cluster of its own.
    """

    arguments: tuple[str, ...]
    isolated: bool = False


@dataclass(frozen=True)
class Suite:
    """Steps one after another; the lanes of a step run side by side.

    Attributes:
        name: for the command line.
        title: for people.
    """

    name: str
    title: str
    steps: tuple[tuple[Lane, ...], ...]


def suites(records: Path) -> tuple[Suite, ...]:
    """All that `make test` runs, in order.

    Args:
        records: an empty folder in which the lanes of one suite leave something for its last step.
    """
    return (
        Suite("unit", "unit", ((Lane(("tests/unit",)),),)),
        Suite(
            "integration",
            "trainer and API server",
            (
                (
                    Lane(("tests/trainer", *_ignored(TRAINER_BESIDE_INTEGRATION))),
                    Lane(("tests/integration", *TRAINER_BESIDE_INTEGRATION)),
                ),
            ),
        ),
        Suite("faults", "faults", ((Lane(("tests/faults",)),),)),
        Suite("e2e", "end to end", _e2e(f"--requests={records}")),
    )


def _e2e(records: str) -> tuple[tuple[Lane, ...], ...]:
    if os.environ.get("KUBE_CONTEXT"):
        return ((Lane((E2E,)),),)
    second = tuple(f"{E2E}/{name}" for name in E2E_SECOND)
    return (
        (
            Lane((E2E, records, *_ignored((*second, E2E_LAST)))),
            Lane((*second, records), isolated=True),
        ),
        (Lane((E2E_LAST, records)),),
    )


def _ignored(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"--ignore={path}" for path in paths)
