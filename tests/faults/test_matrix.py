# SPDX-License-Identifier: Apache-2.0
"""A chain has the same outcome whatever fault one of its writes has, and whichever event is lost."""

import os
from concurrent.futures import Future

import pytest

from tests.faults.laboratory import Outcome, Verdicts
from tests.faults.matrix import (
    EVENTS,
    SAMPLE,
    WRITES,
    differences,
    events_of,
    record,
    recorded,
    trials,
    writes_of,
)
from tests.faults.trials import Trial


def test_an_undisturbed_chain_makes_the_writes_that_are_disturbed(
    verdicts: Verdicts, undisturbed: Future[Outcome]
) -> None:
    outcome = undisturbed.result()
    if os.environ.get("UPDATE_GOLDEN"):
        record(WRITES, writes_of(outcome))
        record(EVENTS, events_of(outcome))
    found = differences(writes_of(outcome), recorded(WRITES))
    found += differences(events_of(outcome), recorded(EVENTS))
    assert not found, "if this is intended: UPDATE_GOLDEN=1 pytest tests/faults -k undisturbed"


@pytest.mark.parametrize(
    ("found", "shows"),
    [
        ([], ["missing: PATCH datasets/status rows Ready=True/Succeeded", "missing: jobs rows deleted"]),
        (
            [
                "PATCH datasets/status rows Reconciling=True/Resting",
                "PATCH datasets/status rows Ready=True/Succeeded",
                "jobs rows deleted",
            ],
            ["new: PATCH datasets/status rows Reconciling=True/Resting"],
        ),
        (["PATCH datasets/status rows Ready=True/Succeeded", "jobs rows deleted #2"], []),
    ],
    ids=["a certain write is missing", "a status with a new reason", "only differences by timing"],
)
def test_what_differs_from_the_recorded_chain_is_named(found: list[str], shows: list[str]) -> None:
    expected = [
        "PATCH datasets/status rows Reconciling=True/Preparing",
        "PATCH datasets/status rows Ready=True/Succeeded",
        "pods rows Running",
        "jobs rows deleted",
    ]
    assert differences(found, expected) == shows


def test_the_sample_is_part_of_the_matrix() -> None:
    """Otherwise a renamed trial would silently disappear from `make test`."""
    assert not SAMPLE - {str(each) for each in trials()}


@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(each, id=str(each), marks=() if str(each) in SAMPLE else pytest.mark.full)
        for each in trials()
    ],
)
def test_a_disturbed_chain_comes_to_the_same_end(trial: Trial, verdicts: Verdicts) -> None:
    verdicts[trial].result()
