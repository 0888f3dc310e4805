# SPDX-License-Identifier: Apache-2.0
"""How a wait for a run ends."""

from typing import Any

import pytest

from finetune_client.errors import ProgramExit
from finetune_client.follow import sparkline
from finetune_client.outcome import WaitFor, default_goal, find_outcome
from finetune_client.verbs.following import parse_duration
from finetune_client.verbs.submitting import waits_for
from finetune_operator.api.finetune_job import FineTuneJob
from tests.unit.client.followedruns import condition, endpoint, job


def run(*conditions: dict[str, Any]) -> FineTuneJob:
    return FineTuneJob.model_validate(job(*conditions))


@pytest.mark.parametrize(
    ("conditions", "goal", "code"),
    [
        ([], WaitFor.READY, None),
        ([condition("Reconciling", "Training")], WaitFor.TRAINED, None),
        ([condition("Trained")], WaitFor.TRAINED, ProgramExit.DONE),
        ([condition("Trained")], WaitFor.READY, None),
        ([condition("Trained"), condition("Stalled", "GateFailed")], WaitFor.TRAINED, ProgramExit.DONE),
        ([condition("Stalled", "GateFailed")], WaitFor.PROMOTED, ProgramExit.GATES_FAILED),
        ([condition("Stalled", "EvaluationUndecided")], WaitFor.READY, ProgramExit.GATES_FAILED),
        ([condition("Stalled", "OutOfMemory")], WaitFor.TRAINED, ProgramExit.FAILED),
        ([condition("Stalled", "Cancelled")], WaitFor.PROMOTED, ProgramExit.FAILED),
        ([condition("Ready", "Promoted")], WaitFor.PROMOTED, ProgramExit.DONE),
        ([condition("Ready", "AwaitingApproval")], WaitFor.PROMOTED, None),
        ([condition("Ready", "AwaitingApproval")], WaitFor.READY, ProgramExit.DONE),
        ([condition("Ready", "NotPromoted")], WaitFor.PROMOTED, ProgramExit.FAILED),
    ],
)
def test_the_exit_code_follows_from_goal_and_conditions(
    conditions: list[dict[str, Any]], goal: WaitFor, code: ProgramExit | None
) -> None:
    outcome = find_outcome(run(*conditions), goal)
    assert (outcome.exit_code if outcome else None) == code


def test_a_run_that_never_promotes_is_awaited_until_it_is_ready() -> None:
    manifest = job()
    assert default_goal(FineTuneJob.model_validate(manifest)) is WaitFor.PROMOTED
    manifest["spec"]["promotion"] = {"mode": "Never"}
    assert default_goal(FineTuneJob.model_validate(manifest)) is WaitFor.READY


def test_the_sparkline_spans_lowest_to_highest_and_leaves_out_what_is_no_number() -> None:
    assert sparkline([4.0, float("nan"), 2.0, 0.5, 0.5]) == "█▄▁▁"
    assert sparkline([1.0]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_a_timeout_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_what_is_submitted_says_what_it_waits_for() -> None:
    assert waits_for({"kind": "FineTuneJob", **job()}) == ": waits for a version of Dataset tickets"
    assert (
        waits_for({"kind": "InferenceDeployment", **endpoint("")})
        == ": waits for a promoted Checkpoint of model line routing"
    )
