# SPDX-License-Identifier: Apache-2.0
"""States of every kind after every end of a pass, and the events that announce them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.meta import Resource
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.passes import (
    Blocked,
    Done,
    Failed,
    PassOutcome,
    PassResult,
    Reconciled,
    Suspended,
    Working,
    block,
    finish_pass,
)
from finetune_operator.status.conditions import is_finished
from finetune_operator.status.reasons import EventReason, Reason
from tests.unit.operator.evaluations import evaluation
from tests.unit.operator.runobjects import dataset, finetunejob, profile

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)

WORKING = Working(Reason.QUEUED, "the pod is being created", 30)
BLOCKED = Blocked(Reason.STORE_MISSING, "set spec.store", 60)
FAILED = Failed(Reason.STAGE_FAILED, "exit code 1")
CANCELLED = Failed(Reason.CANCELLED, "create another run")
DONE = Done(Reason.SUCCEEDED, "everything is there")
SUSPENDED = Suspended(Reason.SUSPENDED, "no devices are held")

ENDS: list[tuple[PassOutcome, str, tuple[str, str], float | None]] = [
    (WORKING, "Reconciling", ("Queued", "Queued"), 30),
    (BLOCKED, "Reconciling", ("Blocked", "Blocked"), 60),
    (FAILED, "Stalled", ("Failed", "Failed"), None),
    (CANCELLED, "Stalled", ("Cancelled", "Cancelled"), None),
    (DONE, "Ready", ("Succeeded", "Ready"), None),
    (SUSPENDED, "Suspended", ("Suspended", "Suspended"), None),
]
"""The end of a pass, its condition, the phases of a run (or Evaluation) and of a Dataset, and the seconds
until the next pass."""


def resource(kind: str, **status: Any) -> Any:
    """An object of this kind in generation 3."""
    model: Any = KINDS_BY_NAME[kind].model
    manifest: Manifest = {
        "FineTuneJob": finetunejob(),
        "Dataset": dataset(),
        "Evaluation": evaluation(),
        "ComputeProfile": profile(),
    }.get(kind, {"metadata": {"name": "x"}})
    metadata = {**manifest["metadata"], "namespace": "team", "generation": 3}
    fields: dict[str, Any] = {"metadata": metadata, "status": status}
    if "spec" in manifest:
        return model.model_validate({**manifest, **fields})
    # Of its spec the writer of states reads nothing.
    return model.model_construct(
        kind=kind,
        metadata=model.model_fields["metadata"].annotation.model_validate(metadata),
        status=model.model_fields["status"].annotation.model_validate(status),
    )


def condition(type_: str, reason: str, status: str = "True") -> Manifest:
    return {"type": type_, "status": status, "reason": reason, "lastTransitionTime": "2030-01-01T00:00:00Z"}


TRAINED = condition("Trained", "Succeeded")
PROMOTED = condition("Ready", "Promoted")


def after(before: Reconciled, halt: PassOutcome, **options: Any) -> PassResult[Any]:
    return finish_pass(before, before.status, halt, LATER, **options)


def told(result: PassResult[Any]) -> list[str]:
    return [f"{event.type} {event.reason}: {event.message}" for event in result.events]


@pytest.mark.parametrize("kind", KINDS_BY_NAME)
@pytest.mark.parametrize(
    ("halt", "type_", "phases", "requeue_after"), ENDS, ids=[type(row[0]).__name__ for row in ENDS]
)
def test_every_kind_is_in_exactly_one_state(
    kind: str, halt: PassOutcome, type_: str, phases: tuple[str, str], requeue_after: float | None
) -> None:
    other = "Reconciling" if type_ == "Stalled" else "Stalled"
    before = resource(
        kind,
        observedGeneration=2,
        conditions=[condition(other, "NotImplemented"), TRAINED],
    )
    result = after(before, halt)
    status = result.manifest
    assert {each["type"] for each in status["conditions"]} == {type_, "Trained"}
    assert status["conditions"][-1]["reason"] == halt.reason
    assert status["observedGeneration"] == 3
    of_run, of_dataset = phases
    expected = {"FineTuneJob": of_run, "FineTuneSweep": of_run, "Evaluation": of_run, "Dataset": of_dataset}
    assert status.get("phase") == expected.get(kind)
    assert result.requeue_after == requeue_after


@pytest.mark.parametrize("kind", KINDS_BY_NAME)
def test_a_block_is_announced_when_its_reason_is_new_and_not_again(kind: str) -> None:
    before = resource(kind, conditions=[condition("Reconciling", "Queued")])
    first = after(before, BLOCKED)
    assert told(first) == ["Warning Blocked: set spec.store"]
    blocked = before.model_copy(update={"status": first.status})
    assert told(after(blocked, Blocked(Reason.STORE_MISSING, "in other words"))) == []
    assert told(after(blocked, Blocked(Reason.FORBIDDEN, "no right"))) == ["Warning Blocked: no right"]
    working = blocked.model_copy(update={"status": after(blocked, WORKING).status})
    assert told(after(working, BLOCKED)) == ["Warning Blocked: set spec.store"]


@pytest.mark.parametrize("kind", KINDS_BY_NAME)
def test_what_is_not_implemented_is_announced_once(kind: str) -> None:
    before = resource(kind)
    failed = Failed(Reason.NOT_IMPLEMENTED, "spec.serving.engine: VLLM")
    first = after(before, failed)
    assert told(first) == ["Warning NotImplemented: spec.serving.engine: VLLM"]
    assert told(after(before.model_copy(update={"status": first.status}), failed)) == []


def test_another_failure_is_announced_by_whoever_found_it_or_as_the_kind_says() -> None:
    before = resource("InferenceDeployment")
    assert told(after(before, FAILED)) == []
    first = after(before, FAILED, announce_failure=EventReason.ROLLOUT_FAILED)
    assert told(first) == ["Warning RolloutFailed: exit code 1"]
    failed = before.model_copy(update={"status": first.status})
    assert told(after(failed, FAILED, announce_failure=EventReason.ROLLOUT_FAILED)) == []


def test_a_suspension_is_announced_once_and_work_is_not() -> None:
    before = resource("FineTuneJob")
    first = after(before, SUSPENDED)
    assert told(first) == ["Normal Suspended: no devices are held"]
    assert told(after(before.model_copy(update={"status": first.status}), SUSPENDED)) == []
    assert told(after(before, WORKING)) == told(after(before, DONE)) == []


@pytest.mark.parametrize("kind", ["FineTuneJob", "Evaluation"])
@pytest.mark.parametrize("halt", [WORKING, BLOCKED, FAILED, SUSPENDED])
def test_a_finished_run_keeps_its_verdict_whatever_its_later_passes_meet(
    kind: str, halt: PassOutcome
) -> None:
    before = resource(kind, observedGeneration=1, phase="Succeeded", conditions=[PROMOTED])
    result = after(before, halt)
    assert result.status == before.status.model_copy(update={"observed_generation": 3})


def test_a_finished_run_announces_a_block_in_every_pass_since_no_condition_remembers_it() -> None:
    before = resource("FineTuneJob", conditions=[condition("Stalled", "GateFailed")])
    first = after(before, BLOCKED)
    again = after(before.model_copy(update={"status": first.status}), BLOCKED)
    assert told(first) == told(again) == ["Warning Blocked: set spec.store"]


def test_a_prepared_dataset_stays_ready_and_says_once_what_a_later_pass_met() -> None:
    before = resource(
        "Dataset", observedGeneration=3, phase="Ready", conditions=[condition("Ready", "Succeeded")]
    )
    first = after(before, BLOCKED)
    states = {each["type"]: (each["status"], each["reason"]) for each in first.manifest["conditions"]}
    assert states == {"Ready": ("True", "Succeeded"), "Refreshed": ("False", "StoreMissing")}
    assert first.status.phase == "Ready"
    assert told(first) == ["Warning Blocked: set spec.store"]
    assert told(after(before.model_copy(update={"status": first.status}), BLOCKED)) == []


def test_a_refusal_of_the_api_server_blocks_and_keeps_the_rest_of_the_status() -> None:
    before = resource(
        "FineTuneJob", observedGeneration=1, phase="Training", resolved={"store": "pvc://artifacts"}
    )
    result = block(before, Reason.QUOTA_EXCEEDED, "raise the quota", NOW)
    status = result.manifest
    assert status["resolved"] == {"store": "pvc://artifacts"}
    assert (status["observedGeneration"], status["phase"]) == (3, "Blocked")
    assert [each["type"] for each in status["conditions"]] == ["Reconciling"]
    assert told(result) == ["Warning Blocked: raise the quota"]


def test_what_is_no_object_of_ours_has_no_state() -> None:
    other = Resource(kind="Pod", metadata={"name": "x"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Resource has no status"):
        block(other, Reason.FORBIDDEN, "no", NOW)


def test_a_run_is_finished_when_ready_or_failed_but_not_with_a_reason_that_can_end() -> None:
    assert is_finished(resource("FineTuneJob", conditions=[condition("Ready", "Promoted")]))
    assert is_finished(resource("FineTuneJob", conditions=[condition("Stalled", "GateFailed")]))
    for reason in ("NotImplemented", "MaxRunSecondsExceeded"):
        assert not is_finished(resource("FineTuneJob", conditions=[condition("Stalled", reason)]))
    assert not is_finished(resource("FineTuneJob", conditions=[condition("Reconciling", "Training")]))
    assert not is_finished(resource("FineTuneJob", observedGeneration=-1))
