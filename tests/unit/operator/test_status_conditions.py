"""Conditions: kstatus reads exactly one state, and transition times move only when a status flips."""

from datetime import UTC, datetime, timedelta

import pytest

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.meta import Condition
from finetune_operator.plan import Manifest
from finetune_operator.status.conditions import (
    MESSAGE_LIMIT,
    blocked,
    enter,
    find,
    is_finished,
    is_true,
    stalled,
    with_condition,
)
from finetune_operator.status.reasons import ConditionType, Reason
from tests.unit.operator.runobjects import finetunejob

NOW = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def working(reason: str = Reason.PREPARING, now: datetime = NOW) -> tuple[Condition, ...]:
    return enter((), ConditionType.RECONCILING, reason, "", generation=1, now=now)


def test_a_transition_time_moves_only_when_the_status_flips() -> None:
    first = working()
    again = enter(first, ConditionType.RECONCILING, Reason.TRAINING, "step 3", generation=1, now=LATER)
    assert again[0].last_transition_time == NOW.replace(microsecond=0)
    assert (again[0].reason, again[0].message) == (Reason.TRAINING, "step 3")
    flipped = with_condition(
        again, ConditionType.RECONCILING, "False", Reason.TRAINING, "", generation=1, now=LATER
    )
    assert flipped[0].last_transition_time == LATER.replace(microsecond=0)


@pytest.mark.parametrize("state", [ConditionType.READY, ConditionType.STALLED, ConditionType.SUSPENDED])
def test_entering_a_state_leaves_every_other(state: ConditionType) -> None:
    both = with_condition(
        working(), ConditionType.TRAINED, "True", Reason.SUCCEEDED, "", generation=1, now=NOW
    )
    after = enter(both, state, Reason.SUCCEEDED, "", generation=2, now=LATER)  # type: ignore[arg-type]
    assert {condition.type for condition in after} == {state, ConditionType.TRAINED}
    found = find(after, state)
    assert found is not None
    assert found.observed_generation == 2


def test_a_long_message_is_cut_to_what_the_api_takes() -> None:
    conditions = enter((), ConditionType.STALLED, Reason.STAGE_FAILED, "x" * 5000, generation=1, now=NOW)
    assert len(conditions[0].message) == MESSAGE_LIMIT
    assert conditions[0].message.endswith("…")


def job(status: Manifest) -> FineTuneJob:
    manifest = finetunejob()
    manifest["metadata"].update(generation=3, namespace="team")
    return FineTuneJob.model_validate({**manifest, "status": status})


def condition(type_: str, reason: str) -> Manifest:
    return {"type": type_, "status": "True", "reason": reason, "lastTransitionTime": "2030-01-01T00:00:00Z"}


def test_a_refusal_of_the_api_server_blocks_and_keeps_the_rest_of_the_status() -> None:
    before = job({"observedGeneration": 1, "phase": "Training", "resolved": {"store": "pvc://artifacts"}})
    status = blocked(before, Reason.QUOTA_EXCEEDED, "raise the quota", NOW)
    assert status["resolved"] == {"store": "pvc://artifacts"}
    assert (status["observedGeneration"], status["phase"]) == (3, "Blocked")
    assert status["conditions"][0]["type"] == "Reconciling"
    assert stalled(before, Reason.NAME_CONFLICT, "taken", NOW)["conditions"][0]["type"] == "Stalled"


def test_a_finished_run_keeps_its_verdict_whatever_the_api_server_refuses() -> None:
    before = job({"observedGeneration": 1, "conditions": [condition("Ready", "Promoted")]})
    for status in (
        blocked(before, Reason.FORBIDDEN, "no", NOW),
        stalled(before, Reason.NAME_CONFLICT, "no", NOW),
    ):
        assert [each["type"] for each in status["conditions"]] == ["Ready"]


def test_a_run_is_finished_when_ready_or_failed_but_not_with_a_reason_that_can_end() -> None:
    assert is_finished(job({"conditions": [condition("Ready", "Promoted")]}))
    assert is_finished(job({"conditions": [condition("Stalled", "GateFailed")]}))
    for reason in ("NameConflict", "NotImplemented", "MaxRunSecondsExceeded"):
        assert not is_finished(job({"conditions": [condition("Stalled", reason)]}))
    assert not is_finished(job({"conditions": [condition("Reconciling", "Training")]}))
    assert not is_finished(job({"observedGeneration": -1}))
    assert not is_true((), ConditionType.READY)
