# SPDX-License-Identifier: Apache-2.0
"""A sweep whose operator ends at a write, before or after it, has the same runs and the same end."""

from dataclasses import replace

import pytest

from finetune_operator.plan import Plan
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.test_reconcile_sweep import (
    BEST,
    KIND,
    NAME,
    end,
    report,
    run,
    searching,
    states,
    step,
    trial,
)

LOSSES = (0.5, 0.3, 0.4, 0.6)
HALVING = {"reductionFactor": 2, "minFraction": 0.5}
WRITES = 16
"""More than the writes of the sweep below."""


def parts(plan: Plan) -> list[Plan]:
    """The plan as the writes that it makes, one by one."""
    creates = [Plan(create=(each,)) for each in plan.create]
    applies = [Plan(apply=(each,)) for each in plan.apply]
    last = replace(plan, create=(), apply=())
    return [*creates, *applies, *([last] if plan.status is not None else [])]


class Crashing:
    """Carries out passes over the sweep, and drops the rest of one pass at the write with this number.

    Args:
        cluster: the cluster.
        at: number of the write, from 0.
        after: whether that write is carried out.
    """

    def __init__(self, cluster: MemoryCluster, at: int, *, after: bool) -> None:
        self._cluster, self._at, self._after = cluster, at, after
        self.writes = 0

    def settle(self) -> None:
        """Passes until none writes anything."""
        while self._pass():
            pass

    def _pass(self) -> bool:
        before = self._cluster.writes
        for part in parts(self._cluster.plan(KIND, NAME)):
            seen = self._cluster.writes
            if self.writes == self._at and not self._after:
                self.writes += 1
                return True
            self._cluster.carry_out(KIND, NAME, part, crash_before_status=part.status is None)
            self.writes += self._cluster.writes > seen
            if self.writes == self._at + 1 and self._after and self._cluster.writes > seen:
                return True
        return self._cluster.writes > before


def ended(at: int, *, after: bool) -> tuple[MemoryCluster, int]:
    """A sweep whose last trial is stopped at its rung, and the number of its writes."""
    cluster = searching(parallelTrials=2, earlyStopping=HALVING)
    passes = Crashing(cluster, at, after=after)
    passes.settle()
    for number, loss in enumerate(LOSSES):
        report(cluster, trial(number), 45, loss)
        passes.settle()
        if run(cluster, trial(number))["spec"].get("cancel"):
            end(cluster, trial(number), loss, "Stalled", "Cancelled")
        else:
            end(cluster, trial(number), loss)
        passes.settle()
    end(cluster, BEST, 0.3, reason="Promoted")
    passes.settle()
    return cluster, passes.writes


def check(at: int, *, after: bool) -> None:
    cluster, _ = ended(at, after=after)
    assert set(cluster.of("FineTuneJob")) == {*(trial(number) for number in range(4)), BEST}
    assert states(cluster) == ["Done", "Done", "Stopped", "Stopped"]
    assert cluster.states(KIND, NAME) == {"Ready": "Promoted"}
    assert step(cluster).status.best is not None


def test_the_matrix_has_every_write() -> None:
    cluster, writes = ended(-2, after=True)
    assert 8 <= writes <= WRITES
    assert cluster.states(KIND, NAME) == {"Ready": "Promoted"}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(WRITES))
def test_a_crash_at_a_write_changes_nothing(at: int, *, after: bool) -> None:
    check(at, after=after)
