"""Whatever happens to any one write of a chain, and whatever it is not told, the end is the same."""

import os
from concurrent.futures import Future

import pytest

from tests.faults.laboratory import Outcome, Verdicts
from tests.faults.matrix import EVENTS, SAMPLE, WRITES, events_of, record, recorded, trials, writes_of
from tests.faults.trials import Trial


def test_an_undisturbed_chain_makes_the_writes_that_are_disturbed(
    verdicts: Verdicts, undisturbed: Future[Outcome]
) -> None:
    outcome = undisturbed.result()
    if os.environ.get("UPDATE_GOLDEN"):
        record(WRITES, writes_of(outcome))
        record(EVENTS, events_of(outcome))
    assert certain(writes_of(outcome)) == certain(recorded(WRITES))


def certain(writes: list[str]) -> set[str]:
    """Which states a status goes through, and how often a refused write is tried, hangs on chance: a pod may
    end before it was seen running."""
    return {write.partition(" #")[0] for write in writes if "/status" not in write}


@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(each, id=str(each), marks=() if str(each) in SAMPLE else pytest.mark.full)
        for each in trials()
    ],
)
def test_a_disturbed_chain_ends_as_an_undisturbed_one(trial: Trial, verdicts: Verdicts) -> None:
    verdicts[trial].result()
