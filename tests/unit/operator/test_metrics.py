"""What /metrics says, read as Prometheus reads it."""

import itertools
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry

from finetune_operator import differences
from finetune_operator.metrics import SERIES_LIMIT, Metrics, StateCollector
from finetune_operator.plan import Manifest


def job(name: str = "a", namespace: str = "team", **status: Any) -> Manifest:
    return {"kind": "FineTuneJob", "metadata": {"name": name, "namespace": namespace}, "status": status}


def running(name: str, step: int, loss: float | None = None) -> Manifest:
    progress = {"stage": "train", "step": step, "totalSteps": 200} | ({} if loss is None else {"loss": loss})
    return job(name, phase="Training", progress=progress, conditions=[condition("Reconciling")])


def condition(type_: str, reason: str = "Any", status: str = "True") -> dict[str, str]:
    return {"type": type_, "status": status, "reason": reason}


def collected(jobs: Iterable[Manifest], *, active: bool = True) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(
        StateCollector(jobs, depth=lambda: 3, ages=lambda: {"pods": 1.5}, active=lambda: active)
    )
    return registry


def test_jobs_are_counted_by_namespace_and_phase() -> None:
    jobs = [
        job("a", phase="Training"),
        job("b", phase="Training"),
        job("c", "other", phase="Failed"),
        job("d"),
    ]
    registry = collected(jobs)
    for namespace, phase, number in (("team", "Training", 2), ("other", "Failed", 1), ("team", "Pending", 1)):
        labels = {"namespace": namespace, "phase": phase}
        assert registry.get_sample_value("finetune_jobs", labels) == number


def test_running_jobs_show_progress_and_loss_and_vanish_at_the_end() -> None:
    finished = job(
        "b", progress={"stage": "train", "step": 200, "totalSteps": 200}, conditions=[condition("Ready")]
    )
    registry = collected([running("a", 50, loss=1.25), finished])
    labels = {"namespace": "team", "job": "a"}
    assert registry.get_sample_value("finetune_job_progress_ratio", labels) == 0.25
    assert registry.get_sample_value("finetune_job_loss", labels) == 1.25
    assert registry.get_sample_value("finetune_job_progress_ratio", {"namespace": "team", "job": "b"}) is None


def test_a_stage_that_knows_no_steps_yet_is_at_the_beginning() -> None:
    starting = job("a", progress={"stage": "train"}, conditions=[condition("Reconciling")])
    registry = collected([starting])
    assert registry.get_sample_value("finetune_job_progress_ratio", {"namespace": "team", "job": "a"}) == 0


def test_series_of_jobs_are_bounded_and_what_is_left_out_is_counted() -> None:
    registry = collected([running(f"job-{number}", 1) for number in range(SERIES_LIMIT + 7)])
    series = [
        sample
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "finetune_job_progress_ratio"
    ]
    assert len(series) == SERIES_LIMIT
    assert registry.get_sample_value("finetune_job_series_dropped") == 7


def test_a_standby_says_nothing_about_jobs_so_that_sums_are_right() -> None:
    registry = collected([running("a", 50)], active=False)
    assert registry.get_sample_value("finetune_active") == 0
    assert registry.get_sample_value("finetune_jobs", {"namespace": "team", "phase": "Training"}) is None
    assert registry.get_sample_value("finetune_queue_depth") == 3
    assert registry.get_sample_value("finetune_watch_age_seconds", {"resource": "pods"}) == 1.5


def test_gone_and_conflict_are_no_errors() -> None:
    metrics = Metrics()
    for result in ("ok", "gone", "conflict", "rejected"):
        metrics.reconciled("FineTuneJob", 0.1, result)

    def errors(result: str) -> float | None:
        labels = {"kind": "FineTuneJob", "result": result}
        return metrics.registry.get_sample_value("finetune_reconcile_errors_total", labels)

    assert errors("rejected") == 1
    assert errors("gone") is None
    assert errors("conflict") is None


def stage_count(metrics: Metrics, stage: str, outcome: str) -> float | None:
    labels = {"stage": stage, "outcome": outcome}
    return metrics.registry.get_sample_value("finetune_stage_seconds_count", labels)


def test_a_finished_stage_is_observed_once() -> None:
    metrics = Metrics()
    before = job(stages=[])
    after = job(stages=[{"name": "train", "seconds": 42.0}], conditions=[condition("Trained")])
    differences.count(metrics, before, after)
    differences.count(metrics, after, after)
    assert stage_count(metrics, "train", "succeeded") == 1
    labels = {"stage": "train", "outcome": "succeeded"}
    assert metrics.registry.get_sample_value("finetune_stage_seconds_sum", labels) == 42.0


def test_a_failed_stage_is_told_from_one_that_succeeded() -> None:
    metrics = Metrics()
    failed = job(stages=[{"name": "train", "seconds": 1}], conditions=[condition("Stalled", "OutOfMemory")])
    differences.count(metrics, job(), failed)
    assert stage_count(metrics, "train", "failed") == 1


def test_device_seconds_grow_by_the_difference_so_that_a_restart_never_counts_again() -> None:
    first = job(usage={"name": "train", "profile": "a100", "deviceSeconds": 100.0})
    second = job(usage={"name": "train", "profile": "a100", "deviceSeconds": 130.0})
    restarted = Metrics()
    differences.count(restarted, first, second)
    labels = {"namespace": "team", "profile": "a100"}
    assert restarted.registry.get_sample_value("finetune_device_seconds_total", labels) == 30.0


def test_device_seconds_count_on_the_profile_that_each_stage_ran_on() -> None:
    metrics = Metrics()
    train = {"name": "train", "profile": "a100", "deviceSeconds": 100.0}
    evaluate = {"name": "evaluate", "profile": "l4", "deviceSeconds": 7.0}
    steps = [job(), job(usage=train), job(stages=[train], usage=evaluate), job(stages=[train, evaluate])]
    for before, after in itertools.pairwise(steps):
        differences.count(metrics, before, after)
    for profile, seconds in (("a100", 100.0), ("l4", 7.0)):
        labels = {"namespace": "team", "profile": profile}
        assert metrics.registry.get_sample_value("finetune_device_seconds_total", labels) == seconds


def promotions(metrics: Metrics, result: str) -> float | None:
    return metrics.registry.get_sample_value("finetune_promotions_total", {"result": result})


def test_promotions_and_refusals_are_counted_by_result() -> None:
    metrics = Metrics()
    differences.count(metrics, job(), job(evaluation={"verdict": "Failed"}))
    differences.count(
        metrics, job(evaluation={"verdict": "Failed"}), job(evaluation={"verdict": "Failed"}, phase="x")
    )
    differences.count(metrics, job(), job(evaluation={"verdict": "Passed"}))
    checkpoint: Manifest = {"kind": "Checkpoint", "metadata": {"name": "c", "namespace": "team"}}
    promoted = {**checkpoint, "status": {"promotedAt": "2026-01-01T00:00:00Z"}}
    differences.count(metrics, checkpoint, promoted)
    rejected = {**checkpoint, "status": {"conditions": [condition("Promoted", "Rejected", "False")]}}
    differences.count(metrics, checkpoint, rejected)
    assert promotions(metrics, "gate_failed") == 1
    assert promotions(metrics, "promoted") == 1
    assert promotions(metrics, "rejected") == 1


def test_rollouts_are_counted_when_a_revision_goes_live_or_fails() -> None:
    def endpoint(**states: str) -> Manifest:
        revisions = [{"name": name, "state": state} for name, state in states.items()]
        metadata = {"name": "e", "namespace": "team"}
        return {"kind": "InferenceDeployment", "metadata": metadata, "status": {"revisions": revisions}}

    metrics = Metrics()
    steps = [
        endpoint(r1="RollingOut"),
        endpoint(r1="Live"),
        endpoint(r1="Live", r2="RollingOut"),
        endpoint(r1="Live", r2="Failed"),
        endpoint(r1="Retired", r2="Failed", r3="Live"),
    ]
    for before, after in itertools.pairwise(steps):
        differences.count(metrics, before, after)
    value = metrics.registry.get_sample_value
    assert value("finetune_rollouts_total", {"result": "succeeded"}) == 2
    assert value("finetune_rollouts_total", {"result": "failed"}) == 1
