# SPDX-License-Identifier: Apache-2.0
"""What counters count between two states of an object."""

import itertools
from typing import Any

import pytest

from finetune_operator.api.stage_status import LOST_CAUSES
from finetune_operator.metrics.changes import record_pod_end, record_transition
from finetune_operator.metrics.process_metrics import OperatorMetrics
from finetune_operator.plan import Manifest


def job(**status: Any) -> Manifest:
    metadata = {"name": "a", "namespace": "team"}
    return {"kind": "FineTuneJob", "metadata": metadata, "status": status}


def endpoint(**status: Any) -> Manifest:
    metadata = {"name": "e", "namespace": "team"}
    return {"kind": "InferenceDeployment", "metadata": metadata, "status": status}


def condition(type_: str, reason: str = "Any", status: str = "True") -> dict[str, str]:
    return {"type": type_, "status": status, "reason": reason}


def stage_count(metrics: OperatorMetrics, stage: str, outcome: str) -> float | None:
    labels = {"stage": stage, "outcome": outcome}
    return metrics.registry.get_sample_value("finetune_stage_seconds_count", labels)


def test_a_finished_stage_is_observed_once() -> None:
    metrics = OperatorMetrics()
    before = job(stages=[])
    after = job(stages=[{"name": "train", "seconds": 42.0}], conditions=[condition("Trained")])
    record_transition(metrics, before, after)
    record_transition(metrics, after, after)
    assert stage_count(metrics, "train", "succeeded") == 1
    labels = {"stage": "train", "outcome": "succeeded"}
    assert metrics.registry.get_sample_value("finetune_stage_seconds_sum", labels) == 42.0


def test_a_failed_stage_is_told_from_one_that_succeeded() -> None:
    metrics = OperatorMetrics()
    failed = job(stages=[{"name": "train", "seconds": 1}], conditions=[condition("Stalled", "OutOfMemory")])
    record_transition(metrics, job(), failed)
    assert stage_count(metrics, "train", "failed") == 1


def test_a_stage_that_was_cancelled_is_no_failure() -> None:
    metrics = OperatorMetrics()
    cancelled = job(stages=[{"name": "train", "seconds": 1}], conditions=[condition("Stalled", "Cancelled")])
    record_transition(metrics, job(), cancelled)
    assert stage_count(metrics, "train", "cancelled") == 1
    assert not stage_count(metrics, "train", "failed")


def test_a_stage_whose_condition_waits_for_the_next_stage_has_succeeded() -> None:
    metrics = OperatorMetrics()
    scoring = job(
        stages=[{"name": "evaluate", "seconds": 1}], conditions=[condition("Reconciling", "Scoring")]
    )
    record_transition(metrics, job(), scoring)
    assert stage_count(metrics, "evaluate", "succeeded") == 1
    assert not stage_count(metrics, "evaluate", "failed")


def test_device_seconds_grow_by_the_difference_so_that_a_restart_never_counts_again() -> None:
    first = job(usage={"name": "train", "profile": "a100", "deviceSeconds": 100.0})
    second = job(usage={"name": "train", "profile": "a100", "deviceSeconds": 130.0})
    restarted = OperatorMetrics()
    record_transition(restarted, first, second)
    labels = {"namespace": "team", "profile": "a100"}
    assert restarted.registry.get_sample_value("finetune_device_seconds_total", labels) == 30.0


def test_device_seconds_count_on_the_profile_that_each_stage_ran_on() -> None:
    metrics = OperatorMetrics()
    train = {"name": "train", "profile": "a100", "deviceSeconds": 100.0}
    evaluate = {"name": "evaluate", "profile": "l4", "deviceSeconds": 7.0}
    steps = [job(), job(usage=train), job(stages=[train], usage=evaluate), job(stages=[train, evaluate])]
    for before, after in itertools.pairwise(steps):
        record_transition(metrics, before, after)
    for profile, seconds in (("a100", 100.0), ("l4", 7.0)):
        labels = {"namespace": "team", "profile": profile}
        assert metrics.registry.get_sample_value("finetune_device_seconds_total", labels) == seconds


def counted(metrics: OperatorMetrics, counter: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"finetune_{counter}_total", {"namespace": "team", **labels})


@pytest.mark.parametrize("kind", ["FineTuneJob", "Evaluation"])
def test_device_time_is_counted_once_by_what_it_was_for_also_after_a_restart(kind: str) -> None:
    waited = {"cause": "Waiting", "deviceSeconds": 4.0}
    begun = {
        "name": "train",
        "profile": "a100",
        "queuedDeviceSeconds": 60.0,
        "startingDeviceSeconds": 3.0,
        "deviceSeconds": 100.0,
        "lost": [waited],
    }
    ended = {
        **begun,
        "deviceSeconds": 150.0,
        "lost": [waited, {"cause": "Preemption", "deviceSeconds": 34.5}],
    }
    evaluate = {**begun, "name": "evaluate", "profile": "l4"}
    states = [
        job(resolved={"profile": "a100"}),
        job(usage=begun),
        job(stages=[ended], usage=evaluate),
        job(stages=[ended, evaluate], phase="Promoting"),
        job(stages=[ended, evaluate], phase="Succeeded"),
    ]
    metrics, restarted = OperatorMetrics(), OperatorMetrics()
    for number, (before, after) in enumerate(itertools.pairwise({**each, "kind": kind} for each in states)):
        record_transition(metrics, before, after)
        if number:
            record_transition(restarted, before, after)

    for profile, of_process, figures in (
        ("a100", metrics, (60, 153, 150, 4, 34.5, 0)),
        ("a100", restarted, (0, 50, 50, 0, 34.5, 0)),
        ("l4", metrics, (60, 103, 100, 4, 0, 0)),
    ):
        assert figures == (
            *(
                counted(of_process, name, profile=profile) or 0
                for name in ("queued_device_seconds", "allocated_device_seconds", "device_seconds")
            ),
            *(
                counted(of_process, "lost_device_seconds", profile=profile, cause=cause) or 0
                for cause in ("Waiting", "Preemption", "BadData")
            ),
        )


@pytest.mark.parametrize(
    "run",
    [
        {**job(resolved={"profile": "a100"}), "spec": {"evaluation": {"profile": "l4"}}},
        job(resolved={"profile": "a100"}, usage={"name": "evaluate", "profile": "l4"}),
        job(stages=[{"name": "train", "profile": "a100"}, {"name": "evaluate", "profile": "l4"}]),
    ],
    ids=["before the stage", "in the stage", "after it"],
)
def test_the_counters_of_all_profiles_of_a_run_begin_at_0(run: Manifest) -> None:
    metrics = OperatorMetrics()
    record_transition(metrics, run, run)
    for profile in ("a100", "l4"):
        for counter in ("device_seconds", "allocated_device_seconds", "queued_device_seconds"):
            assert counted(metrics, counter, profile=profile) == 0
        for cause in LOST_CAUSES:
            assert counted(metrics, "lost_device_seconds", profile=profile, cause=cause) == 0
    assert metrics.profiles == {"a100", "l4"}


def test_the_counters_of_a_profile_that_is_not_checked_yet_do_not_begin() -> None:
    metrics = OperatorMetrics()
    run = {**job(), "spec": {"evaluation": {"profile": "typo"}}}
    record_transition(metrics, run, run)
    assert metrics.profiles == set()


def promotions(metrics: OperatorMetrics, result: str) -> float | None:
    labels = {"namespace": "team", "result": result}
    return metrics.registry.get_sample_value("finetune_promotions_total", labels)


def test_promotions_and_refusals_are_counted_by_result() -> None:
    metrics = OperatorMetrics()
    record_transition(metrics, job(), job(evaluation={"verdict": "Failed"}))
    record_transition(
        metrics, job(evaluation={"verdict": "Failed"}), job(evaluation={"verdict": "Failed"}, phase="x")
    )
    record_transition(metrics, job(), job(evaluation={"verdict": "Passed"}))
    checkpoint: Manifest = {"kind": "Checkpoint", "metadata": {"name": "c", "namespace": "team"}}
    promoted = {**checkpoint, "status": {"promotedAt": "2026-01-01T00:00:00Z"}}
    record_transition(metrics, checkpoint, promoted)
    rejected = {**checkpoint, "status": {"conditions": [condition("Promoted", "Rejected", "False")]}}
    record_transition(metrics, checkpoint, rejected)
    assert promotions(metrics, "gate_failed") == 1
    assert promotions(metrics, "promoted") == 1
    assert promotions(metrics, "rejected") == 1


def judged(name: str, state: str, verdict: str | None = None, **fields: Any) -> dict[str, Any]:
    """Entry of a revision in the status of an endpoint."""
    return {"name": name, "state": state, **({"verdict": {"result": verdict}} if verdict else {}), **fields}


def test_a_rollout_is_counted_once_when_there_is_a_verdict_on_its_revision() -> None:
    failed, live = judged("r0", "Failed", "Failed"), judged("r1", "Live", "Passed")
    standby, returned = judged("r1", "Standby", "Passed"), judged("r3", "RolledBack", "Failed")
    aborted, retried = judged("r2", "RolledBack", "Aborted"), judged("r2", "RollingOut")
    steps = [
        endpoint(revisions=[judged("r0", "RollingOut")]),
        endpoint(revisions=[failed]),
        endpoint(revisions=[judged("r1", "RollingOut"), failed]),
        endpoint(revisions=[live, failed], revision="r1"),
        endpoint(revisions=[judged("r2", "Canary"), live, failed], revision="r1"),
        endpoint(revisions=[aborted, live, failed], revision="r1"),
        endpoint(revisions=[judged("r3", "Baking"), aborted, standby, failed], revision="r3"),
        endpoint(revisions=[returned, aborted, live, failed], revision="r1"),
        endpoint(revisions=[retried, returned, live, failed], revision="r1"),
        endpoint(revisions=[judged("r2", "Live", "Promoted"), returned, failed], revision="r2"),
    ]
    metrics = OperatorMetrics()
    for before, after in itertools.pairwise(steps):
        record_transition(metrics, before, after)

    def counted(metric: str, label: str) -> dict[str, float]:
        (family,) = (each for each in metrics.registry.collect() if each.name == metric)
        samples = [each for each in family.samples if each.labels["namespace"] == "team" and each.value]
        return {each.labels[label]: each.value for each in samples}

    assert counted("finetune_rollouts", "result") == {"failed": 1, "succeeded": 2, "rolled_back": 2}
    verdicts = {"Failed": 2, "Passed": 1, "Aborted": 1, "Promoted": 1}
    assert counted("finetune_rollout_verdicts", "verdict") == verdicts


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [
        (judged("r1", "Baking", "Promoted"), judged("r1", "RolledBack", "Failed"), "rolled_back"),
        (judged("r1", "Failed", "Failed"), judged("r1", "Live", "Passed"), "succeeded"),
        (judged("r1", "Baking", "Promoted"), judged("r1", "Live", "Promoted"), None),
    ],
    ids=["promoted, then rolled back in its bake", "retried and ready in one pass", "its bake ended"],
)
def test_another_verdict_on_a_revision_is_counted_too(
    before: dict[str, Any], after: dict[str, Any], result: str | None
) -> None:
    metrics = OperatorMetrics()
    serving = "r1" if after["state"] == "Live" else "r0"
    record_transition(metrics, endpoint(revisions=[before]), endpoint(revisions=[after], revision=serving))
    (family,) = (each for each in metrics.registry.collect() if each.name == "finetune_rollouts")
    counted = {
        each.labels["result"]: each.value
        for each in family.samples
        if each.value and each.name.endswith("_total")
    }
    assert counted == ({result: 1} if result else {})


def test_a_verdict_counts_for_the_strategy_of_the_endpoint_and_has_a_duration() -> None:
    times = {"startedAt": "2026-01-01T00:00:00Z", "since": "2026-01-01T00:10:00Z"}
    strategy = {"spec": {"strategy": {"type": "Canary"}}}
    before = endpoint(revisions=[judged("r1", "Canary")]) | strategy
    after = endpoint(revisions=[judged("r1", "Live", "Passed", **times)], revision="r1") | strategy
    older = endpoint(revisions=[judged("r0", "Live", "Passed")], revision="r0") | strategy
    metrics = OperatorMetrics()
    record_transition(metrics, before, after)
    record_transition(metrics, endpoint() | strategy, older)
    value = metrics.registry.get_sample_value
    labels = {"namespace": "team", "strategy": "Canary", "verdict": "Passed"}
    assert value("finetune_rollout_verdicts_total", labels) == 2
    taken = {"strategy": "Canary", "result": "succeeded"}
    assert value("finetune_rollout_duration_seconds_sum", taken) == 600
    assert value("finetune_rollout_duration_seconds_count", taken) == 1


def test_an_analysis_is_counted_once_by_its_verdict() -> None:
    def canary(analysis: dict[str, Any] | None = None) -> Manifest:
        return endpoint(revisions=[judged("r1", "Canary", analysis=analysis)])

    first, second = ({"step": step, "verdict": "Pass"} for step in (1, 3))
    steps = [canary(), canary(first), canary(first), canary(second), canary({**second, "verdict": "Fail"})]
    metrics = OperatorMetrics()
    for before, after in itertools.pairwise(steps):
        record_transition(metrics, before, after)
    for verdict, count in (("Pass", 2), ("Fail", 1), ("Inconclusive", 0)):
        labels = {"namespace": "team", "verdict": verdict}
        assert metrics.registry.get_sample_value("finetune_rollout_analyses_total", labels) == count


def test_what_is_counted_by_namespace_begins_at_zero_with_the_first_look_at_an_object() -> None:
    metrics = OperatorMetrics()
    waiting = job(resolved={"profile": "a100"})
    record_transition(metrics, waiting, waiting)
    value = metrics.registry.get_sample_value
    for name, labels in (
        ("finetune_device_seconds_total", {"profile": "a100"}),
        ("finetune_queued_device_seconds_total", {"profile": "a100"}),
        ("finetune_allocated_device_seconds_total", {"profile": "a100"}),
        *(("finetune_lost_device_seconds_total", {"profile": "a100", "cause": each}) for each in LOST_CAUSES),
        ("finetune_rollouts_total", {"result": "rolled_back"}),
        ("finetune_rollout_verdicts_total", {"strategy": "BlueGreen", "verdict": "Aborted"}),
        ("finetune_promotions_total", {"result": "promoted"}),
        ("finetune_checkpoints_recorded_total", {}),
    ):
        assert value(name, {"namespace": "team", **labels}) == 0


def test_queueing_cost_and_checkpoints_are_counted_once() -> None:
    train = {"name": "train", "profile": "a100", "seconds": 60.0, "queuedSeconds": 20.0}
    before = job(cost={"amount": 1.5, "currency": "EUR"})
    after = job(stages=[train], cost={"amount": 2.0, "currency": "EUR"}, checkpoints=[{"name": "c"}])
    metrics = OperatorMetrics()
    record_transition(metrics, before, after)
    record_transition(metrics, after, after)
    value = metrics.registry.get_sample_value
    queued = {"stage": "train", "profile": "a100"}
    assert value("finetune_stage_queued_seconds_sum", queued) == 20
    assert value("finetune_stage_queued_seconds_count", queued) == 1
    assert value("finetune_cost_total", {"namespace": "team", "currency": "EUR"}) == 0.5
    assert value("finetune_checkpoints_recorded_total", {"namespace": "team"}) == 1


def pod(stage: str = "train", phase: str = "Running", **terminated: Any) -> Manifest:
    state = {"terminated": terminated} if terminated else {"running": {}}
    statuses = [{"name": "trainer", "state": state}]
    metadata = {"name": "p", "labels": {"finetune.dev/stage": stage}}
    return {"kind": "Pod", "metadata": metadata, "status": {"phase": phase, "containerStatuses": statuses}}


def disrupted(pod: Manifest) -> Manifest:
    pod["status"]["conditions"] = [condition("DisruptionTarget")]
    return pod


def deleted(pod: Manifest) -> Manifest:
    pod["metadata"]["deletionTimestamp"] = "2030-01-02T03:00:00Z"
    return pod


@pytest.mark.parametrize(
    ("ended", "cause"),
    [
        (pod(phase="Succeeded", exitCode=0), "succeeded"),
        (pod(phase="Failed", exitCode=11), "failed"),
        (pod(phase="Failed", exitCode=137, reason="OOMKilled"), "out_of_memory"),
        (pod(phase="Failed", exitCode=20), "preempted"),
        (pod(phase="Failed", exitCode=21), "preempted"),
        (disrupted(pod(phase="Failed", exitCode=137)), "preempted"),
        (deleted(pod(phase="Failed", exitCode=143)), "preempted"),
        (deleted(pod(phase="Failed", exitCode=137, reason="OOMKilled")), "out_of_memory"),
    ],
)
def test_the_end_of_a_pod_is_counted_once_by_its_cause(ended: Manifest, cause: str) -> None:
    metrics = OperatorMetrics()
    for before, after in itertools.pairwise([None, pod(), ended, ended, None]):
        record_pod_end(metrics, before, after)
    labels = {"stage": "train", "cause": cause}
    assert metrics.registry.get_sample_value("finetune_pods_ended_total", labels) == 1


def test_a_pod_that_only_claims_to_be_of_a_stage_makes_no_series() -> None:
    metrics = OperatorMetrics()
    record_pod_end(metrics, pod("forged"), pod("forged", phase="Failed", exitCode=1))
    samples = [s for family in metrics.registry.collect() for s in family.samples]
    assert not any(sample.labels.get("stage") == "forged" for sample in samples)
