# SPDX-License-Identifier: Apache-2.0
"""The output of /metrics, parsed as Prometheus parses it."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import CollectorRegistry

import finetune_operator
from finetune_operator.api.inference_deployment import RevisionResult
from finetune_operator.api.rollout_strategy import StrategyType
from finetune_operator.api.stage_status import LOST_CAUSES
from finetune_operator.metrics.object_gauges import MAX_SERIES_PER_KIND, ObjectStateCollector
from finetune_operator.metrics.process_metrics import OperatorMetrics, ProcessStateCollector
from finetune_operator.plan import Manifest
from finetune_trainer.contract.analysis import AnalysisVerdict
from hack.version import PACKAGE, version, versioned_files

ROOT = Path(__file__).parents[3]
NOW = 1_800_000_000.0


def job(name: str = "a", namespace: str = "team", **status: Any) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}"}
    return {"kind": "FineTuneJob", "metadata": metadata, "status": status}


def dataset(name: str, **status: Any) -> Manifest:
    return {"kind": "Dataset", "metadata": {"name": name, "namespace": "team"}, "status": status}


def pod(started: str | None) -> Manifest:
    state = {"running": {"startedAt": started}} if started else {"waiting": {}}
    return {"status": {"containerStatuses": [{"name": "trainer", "state": state}]}}


def endpoint(name: str = "e", *, models: int = 1, **status: Any) -> Manifest:
    metadata = {"name": name, "namespace": "team"}
    spec = {"models": [{"name": f"m{number}"} for number in range(models)], "replicas": 2}
    return {"kind": "InferenceDeployment", "metadata": metadata, "spec": spec, "status": status}


def running(name: str, step: int, loss: float | None = None) -> Manifest:
    progress = {"stage": "train", "step": step, "totalSteps": 200} | ({} if loss is None else {"loss": loss})
    return job(name, phase="Training", progress=progress, conditions=[condition("Reconciling")])


def condition(type_: str, reason: str = "Any", status: str = "True") -> dict[str, str]:
    return {"type": type_, "status": status, "reason": reason}


def collected(
    jobs: Iterable[Manifest] = (),
    datasets: Iterable[Manifest] = (),
    endpoints: Iterable[Manifest] = (),
    evaluations: Iterable[Manifest] = (),
    profiles: Iterable[Manifest] = (),
    *,
    active: bool = True,
    pods: Iterable[Manifest] = (),
    since_progress: float | None = None,
    report_up: bool | None = True,
    settled: dict[tuple[str, str], int] | None = None,
    max_series: int = MAX_SERIES_PER_KIND,
) -> CollectorRegistry:
    registry = CollectorRegistry()
    kinds = {
        "FineTuneJob": jobs,
        "Dataset": datasets,
        "InferenceDeployment": endpoints,
        "Evaluation": evaluations,
        "ComputeProfile": profiles,
    }
    registry.register(
        ObjectStateCollector(
            kinds,
            lambda: active,
            lambda _namespace, _uid: pods,
            lambda _uid: since_progress,
            settled=lambda: settled or {},
            max_series=max_series,
            clock=lambda: NOW,
        )
    )
    registry.register(
        ProcessStateCollector(
            depth=lambda: 3,
            ages=lambda: {"pods": 1.5},
            active=lambda: active,
            lease_transitions=lambda: 4,
            report_up=lambda: report_up,
        )
    )
    return registry


def test_jobs_are_counted_by_namespace_and_phase() -> None:
    jobs = [
        job("a", phase="Training"),
        job("b", phase="Training"),
        job("c", "other", phase="Failed"),
        job("d"),
    ]
    registry = collected(jobs, settled={("team", "Succeeded"): 9, ("other", "Failed"): 4})
    for namespace, phase, number in (
        ("team", "Training", 2),
        ("other", "Failed", 5),
        ("team", "Pending", 1),
        ("team", "Succeeded", 9),
    ):
        labels = {"namespace": namespace, "phase": phase}
        assert registry.get_sample_value("finetune_jobs", labels) == number


def test_what_waits_for_somebody_is_counted_by_kind_and_reason() -> None:
    def blocked(reason: str) -> dict[str, Any]:
        return {"phase": "Blocked", "conditions": [condition("Reconciling", reason)]}

    jobs = [
        job("a", **blocked("StoreUnavailable")),
        job("b", **blocked("StoreUnavailable")),
        job("c", "other", **blocked("SecretNotFound")),
        job("d", phase="Queued", conditions=[condition("Reconciling", "Queued")]),
    ]
    datasets = [dataset("rows", **blocked("SourceUnavailable")), dataset("ready", phase="Ready")]
    (family,) = (each for each in collected(jobs, datasets).collect() if each.name == "finetune_blocked")
    found = {tuple(sample.labels.values()): sample.value for sample in family.samples}
    assert found == {
        ("FineTuneJob", "team", "StoreUnavailable"): 2,
        ("FineTuneJob", "other", "SecretNotFound"): 1,
        ("Dataset", "team", "SourceUnavailable"): 1,
    }


def test_a_run_that_waits_for_its_dataset_waits_for_a_person_if_the_dataset_does() -> None:
    def waiting(name: str, rows: str) -> dict[str, Any]:
        run = job(name, phase="Anything", conditions=[condition("Reconciling", "WaitingForDataset")])
        return {**run, "spec": {"dataset": {"ref": {"name": rows}}}}

    datasets = [
        dataset("blocked", conditions=[condition("Reconciling", "SourceUnavailable")]),
        dataset("prepared", phase="Blocked", conditions=[condition("Reconciling", "Preparing")]),
    ]
    registry = collected([waiting("a", "blocked"), waiting("b", "prepared")], datasets)
    labels = {"kind": "FineTuneJob", "namespace": "team", "reason": "WaitingForDataset"}
    assert registry.get_sample_value("finetune_blocked", labels) == 1


def test_an_evaluation_that_waits_for_a_checkpoint_counts_as_blocked() -> None:
    state = condition("Reconciling", "CheckpointNotFound")
    waiting = {**job("e", conditions=[state]), "kind": "Evaluation"}
    labels = {"kind": "Evaluation", "namespace": "team", "reason": "CheckpointNotFound"}
    assert collected(evaluations=[waiting]).get_sample_value("finetune_blocked", labels) == 1


def test_running_jobs_show_progress_and_loss_and_vanish_at_the_end() -> None:
    finished = job(
        "b", progress={"stage": "train", "step": 200, "totalSteps": 200}, conditions=[condition("Ready")]
    )
    registry = collected([running("a", 50, loss=1.25), finished])
    labels = {"namespace": "team", "finetunejob": "a"}
    assert registry.get_sample_value("finetune_job_progress_ratio", labels) == 0.25
    assert registry.get_sample_value("finetune_job_loss", labels) == 1.25
    ended = {"namespace": "team", "finetunejob": "b"}
    assert registry.get_sample_value("finetune_job_progress_ratio", ended) is None


def test_a_stage_that_knows_no_steps_yet_is_at_the_beginning() -> None:
    starting = job("a", progress={"stage": "train"}, conditions=[condition("Reconciling")])
    registry = collected([starting])
    labels = {"namespace": "team", "finetunejob": "a"}
    assert registry.get_sample_value("finetune_job_progress_ratio", labels) == 0


@pytest.mark.parametrize(
    ("reported", "written", "moved_at"),
    [
        (None, None, NOW - 7200),
        (60.0, None, NOW - 60),
        (None, "2027-01-15T07:30:00Z", NOW - 1800),
        (60.0, "2027-01-15T07:30:00Z", NOW - 60),
        (9000.0, "2027-01-15T05:30:00Z", NOW - 7200),
    ],
    ids=["pod started", "reported", "restarted operator", "reported and written", "pod is younger"],
)
def test_a_run_last_moved_when_its_pod_started_or_it_reported_or_as_its_status_remembers(
    reported: float | None, written: str | None, moved_at: float
) -> None:
    job = running("a", 50)
    if written is not None:
        job["status"]["usage"] = {"until": written}
    registry = collected([job], pods=[pod(started="2027-01-15T06:00:00Z")], since_progress=reported)
    labels = {"namespace": "team", "finetunejob": "a"}
    assert registry.get_sample_value("finetune_job_progress_timestamp_seconds", labels) == moved_at


def test_a_run_without_a_running_pod_is_not_expected_to_move() -> None:
    registry = collected([running("a", 50)], pods=[pod(started=None)], since_progress=9.0)
    labels = {"namespace": "team", "finetunejob": "a"}
    assert registry.get_sample_value("finetune_job_progress_timestamp_seconds", labels) is None


def test_a_dataset_shows_its_problems_while_it_has_some() -> None:
    registry = collected(datasets=[dataset("bad", problemCount=3), dataset("good", problemCount=0)])
    value = registry.get_sample_value
    assert value("finetune_dataset_problems", {"namespace": "team", "dataset": "bad"}) == 3
    assert value("finetune_dataset_problems", {"namespace": "team", "dataset": "good"}) is None


def test_an_endpoint_shows_what_it_is_asked_for_and_what_it_serves() -> None:
    serving = endpoint("up", models=2)
    serving["status"] = {"models": [{"name": "m0", "digest": "sha256:0"}], "readyReplicas": 1}
    waiting = endpoint("new", conditions=[condition("Reconciling", "WaitingForCheckpoint")])
    registry = collected(endpoints=[serving, waiting])

    def shown(name: str) -> list[float | None]:
        labels = {"namespace": "team", "inferencedeployment": name}
        families = ("models", "models_served", "replicas", "replicas_ready", "waiting_for_checkpoint")
        return [registry.get_sample_value(f"finetune_endpoint_{family}", labels) for family in families]

    assert shown("up") == [2, 1, 2, 1, 0]
    assert shown("new") == [1, 0, 2, 0, 1]


def test_revisions_with_requests_or_a_rollout_show_their_weight_and_state() -> None:
    revisions = [
        {"name": "new", "state": "Canary", "weight": 10, "since": "2027-01-15T06:00:00Z"},
        {"name": "live", "state": "Live", "weight": 90, "since": "2027-01-01T00:00:00Z"},
        {"name": "failed", "state": "Failed", "weight": 0, "since": "2027-01-01T00:00:00Z"},
        {"name": "older", "state": "Retired"},
    ]
    registry = collected(endpoints=[endpoint("e", revisions=revisions)])
    families = {family.name: family.samples for family in registry.collect()}

    weights = {s.labels["revision"]: s.value for s in families["finetune_endpoint_revision_weight_ratio"]}
    assert weights == {"new": 0.1, "live": 0.9}
    since = {
        (sample.labels["revision"], sample.labels["state"]): sample.value
        for sample in families["finetune_endpoint_revision_state_timestamp_seconds"]
    }
    assert since == {("new", "Canary"): 1_799_992_800, ("live", "Live"): 1_798_761_600}


def test_an_endpoint_has_the_cost_per_hour_of_its_status() -> None:
    priced = endpoint("large", cost={"devices": 4, "amountPerHour": 10.0, "currency": "EUR"})
    unnamed = endpoint("small", cost={"devices": 0, "amountPerHour": 0.0})
    registry = collected(endpoints=[priced, unnamed, endpoint("free", cost={"devices": 2}), endpoint("new")])
    (family,) = (each for each in registry.collect() if each.name == "finetune_endpoint_hourly_cost")
    costs = {(s.labels["inferencedeployment"], s.labels["currency"]): s.value for s in family.samples}
    assert costs == {("large", "EUR"): 10, ("small", ""): 0}


def test_an_endpoint_without_capacity_for_its_rollout_is_seen() -> None:
    waiting = endpoint("new", conditions=[condition("Reconciling", "NoCapacityForSurge")])
    starting = endpoint("up", conditions=[condition("Reconciling", "RollingOut")])
    registry = collected(endpoints=[waiting, starting])
    for name, value in (("new", 1), ("up", 0)):
        labels = {"namespace": "team", "inferencedeployment": name}
        assert registry.get_sample_value("finetune_endpoint_waiting_for_capacity", labels) == value


def test_an_endpoint_has_a_route_that_is_accepted_or_not() -> None:
    def routed(name: str, status: str) -> dict[str, Any]:
        return endpoint(name, conditions=[{"type": "RouteAccepted", "status": status, "reason": "x"}])

    statuses = {"public": "True", "refused": "False", "pending": "Unknown"}
    registry = collected(endpoints=[*(routed(*each) for each in statuses.items()), endpoint("internal")])
    values = {
        name: registry.get_sample_value(
            "finetune_endpoint_route_accepted", {"namespace": "team", "inferencedeployment": name}
        )
        for name in (*statuses, "internal")
    }
    assert values == {"public": 1, "refused": 0, "pending": 0, "internal": None}


def test_an_endpoint_below_the_security_floor_counts_and_one_whose_version_is_unknown_does_not() -> None:
    def judged(name: str, status: str) -> dict[str, Any]:
        return endpoint(name, conditions=[{"type": "ImageCurrent", "status": status, "reason": "x"}])

    registry = collected(endpoints=[judged("old", "False"), judged("new", "True"), judged("odd", "Unknown")])
    values = {
        name: registry.get_sample_value(
            "finetune_endpoint_image_outdated", {"namespace": "team", "inferencedeployment": name}
        )
        for name in ("old", "new", "odd")
    }
    assert values == {"old": 1, "new": 0, "odd": 0}


def profile(name: str, limit: dict[str, float], *usage: dict[str, Any]) -> Manifest:
    spec = {"cost": {"budget": {"period": "Week", **limit}}} if limit else {}
    since, end = "2030-01-07T00:00:00Z", "2030-01-14T00:00:00Z"
    counted = [{**each, "countedUntil": since} for each in usage]
    status = {"budget": {"period": "Week", "since": since, "resetsAt": end, "usage": counted}}
    return {"metadata": {"name": name}, "spec": spec, "status": status}


def test_the_share_of_a_budget_that_each_namespace_has_used_is_of_hours_or_of_cost() -> None:
    hours = {"namespace": "a", "deviceSeconds": 5400, "cost": 9.0}
    profiles = [
        profile("hours", {"deviceHoursPerNamespace": 2}, hours, {"namespace": "b", "deviceSeconds": 7200}),
        profile("deleted", {"deviceHoursPerNamespace": 2}, {"namespace": "deleted", "deviceSeconds": 7200}),
        profile("cost", {"costPerNamespace": 6}, hours),
        profile("removed", {}, hours),
        {
            "metadata": {"name": "new"},
            "spec": {"cost": {"budget": {"period": "Day", "deviceHoursPerNamespace": 1}}},
        },
    ]
    finished = {("b", "Succeeded"): 1}
    registry = collected(profiles=profiles, datasets=[in_namespace("a")], settled=finished)
    (family,) = (each for each in registry.collect() if each.name == "finetune_budget_used_ratio")
    shares = {(s.labels["namespace"], s.labels["profile"]): s.value for s in family.samples}
    assert shares == {("a", "hours"): 0.75, ("b", "hours"): 1, ("a", "cost"): 1.5}


def in_namespace(namespace: str) -> Manifest:
    return {**dataset("rows"), "metadata": {"name": "rows", "namespace": namespace}}


def test_runs_and_evaluations_that_wait_for_a_budget_are_counted_by_namespace() -> None:
    waiting = {"conditions": [condition("Reconciling", "BudgetExhausted")]}
    jobs = [{**running(name, 1), "kind": "FineTuneJob", "status": waiting} for name in ("a", "b")]
    evaluation = {"kind": "Evaluation", "metadata": {"name": "e", "namespace": "team"}, "status": waiting}
    other = {**running("c", 1), "kind": "FineTuneJob"}
    registry = collected([*jobs, other], evaluations=[evaluation])
    counts = {labels["kind"]: number for labels, number in waiting_series(registry)}
    assert counts == {"FineTuneJob": 2, "Evaluation": 1}


def waiting_series(registry: CollectorRegistry) -> list[tuple[dict[str, str], float]]:
    (family,) = (each for each in registry.collect() if each.name == "finetune_budget_waiting")
    return [(sample.labels, sample.value) for sample in family.samples]


def test_work_that_waits_for_a_budget_is_counted_by_the_profile_of_its_next_stage() -> None:
    waiting = {"conditions": [condition("Reconciling", "BudgetExhausted")]}
    spec = {"compute": {"profile": "large"}, "evaluation": {"profile": "small"}}
    resolved = {"resolved": {"profile": "former"}}
    trained = {"checkpoints": [{"name": "a"}]}
    runs = [
        {**running(name, 1), "kind": "FineTuneJob", "spec": spec_of, "status": {**waiting, **status}}
        for name, spec_of, status in (
            ("trains", spec, {}),
            ("measures", spec, trained),
            ("resolved", {}, resolved),
            ("on-one", {"evaluation": {}}, {**resolved, **trained}),
            ("default", {}, {}),
        )
    ]
    default = profile("usual", {"deviceHoursPerNamespace": 2})
    default["metadata"]["annotations"] = {"finetune.dev/is-default-profile": "true"}
    registry = collected(runs, profiles=[default])
    found = {labels["profile"]: number for labels, number in waiting_series(registry)}
    assert found == {"large": 1, "small": 1, "former": 2, "usual": 1}


def test_series_of_objects_are_bounded_and_what_is_left_out_is_counted() -> None:
    limit = 100
    many = range(limit + 7)
    registry = collected(
        [running(f"job-{number}", 1) for number in many],
        [dataset(f"dataset-{number}", problemCount=1) for number in many],
        [endpoint(f"endpoint-{number}") for number in many],
        max_series=limit,
    )
    samples = [sample.name for metric in registry.collect() for sample in metric.samples]
    for name in ("finetune_job_progress_ratio", "finetune_dataset_problems", "finetune_endpoint_models"):
        assert samples.count(name) == limit
    for kind in ("FineTuneJob", "Dataset", "InferenceDeployment"):
        assert registry.get_sample_value("finetune_series_dropped", {"kind": kind}) == 7


@pytest.mark.parametrize(
    ("gauge", "value", "trouble"),
    [
        ("finetune_endpoint_models_served", 0, {"models": [{"name": "m0"}]}),
        ("finetune_endpoint_replicas_ready", 0, {"readyReplicas": 0}),
        (
            "finetune_endpoint_waiting_for_capacity",
            1,
            {"conditions": [condition("Reconciling", "NoCapacityForSurge")]},
        ),
        (
            "finetune_endpoint_route_accepted",
            0,
            {"conditions": [condition("RouteAccepted", "RoutePending", "Unknown")]},
        ),
        ("finetune_endpoint_image_outdated", 1, {"conditions": [condition("ImageCurrent", "Old", "False")]}),
    ],
)
def test_an_endpoint_with_an_alert_has_series_however_many_others_were_there_before(
    gauge: str, value: float, trouble: dict[str, Any]
) -> None:
    healthy = {"models": [{"name": "m0", "digest": "d"}], "readyReplicas": 2}
    endpoints = [endpoint(f"endpoint-{number}") | {"status": healthy} for number in range(20)]
    endpoints.append(endpoint("troubled") | {"status": {**healthy, **trouble}})
    registry = collected(endpoints=endpoints, max_series=10)
    labels = {"namespace": "team", "inferencedeployment": "troubled"}
    assert registry.get_sample_value(gauge, labels) == value
    first = {**labels, "inferencedeployment": "endpoint-8"}
    assert registry.get_sample_value("finetune_endpoint_models", first) == 1
    assert registry.get_sample_value("finetune_series_dropped", {"kind": "InferenceDeployment"}) == 11


def test_the_runs_without_progress_for_longest_and_the_worst_datasets_have_series_first() -> None:
    runs = [running(f"job-{number}", 1) for number in range(20)]
    for number, each in enumerate(runs):
        until = datetime.fromtimestamp(NOW - number, UTC).isoformat()
        each["status"]["usage"] = {"until": until}
    faulty = [dataset(f"dataset-{number}", problemCount=number + 1) for number in range(20)]
    registry = collected(runs, faulty, pods=[pod("1970-01-01T00:00:00Z")], max_series=1)
    for name, labels in (
        ("finetune_job_progress_ratio", {"namespace": "team", "finetunejob": "job-19"}),
        ("finetune_dataset_problems", {"namespace": "team", "dataset": "dataset-19"}),
    ):
        assert registry.get_sample_value(name, labels) is not None


def test_no_namespace_takes_the_series_of_another_one() -> None:
    endpoints = [endpoint(f"broken-{number}") for number in range(20)]
    endpoints.append(endpoint("other"))
    endpoints[-1]["metadata"]["namespace"] = "calm"
    runs = [running(f"job-{number}", 1) for number in range(20)]
    faulty = [dataset(f"dataset-{number}", problemCount=number + 2) for number in range(20)]
    runs.append(running("other", 1))
    faulty.append(dataset("other", problemCount=1))
    for each in (runs[-1], faulty[-1]):
        each["metadata"]["namespace"] = "calm"
    registry = collected(runs, faulty, endpoints, max_series=10)
    for name, kind in (
        ("finetune_endpoint_models", "inferencedeployment"),
        ("finetune_job_progress_ratio", "finetunejob"),
        ("finetune_dataset_problems", "dataset"),
    ):
        assert registry.get_sample_value(name, {"namespace": "calm", kind: "other"}) is not None


def test_a_standby_says_nothing_about_objects_so_that_sums_are_right() -> None:
    bad = dataset("d", phase="Blocked", problemCount=1)
    registry = collected([running("a", 50)], [bad], [endpoint()], active=False)
    about_objects = [
        sample.name
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.startswith(
            ("finetune_job", "finetune_blocked", "finetune_dataset", "finetune_endpoint")
        )
    ]
    assert about_objects == []
    assert registry.get_sample_value("finetune_active") == 0
    assert registry.get_sample_value("finetune_report_up") is None
    assert registry.get_sample_value("finetune_lease_transitions_total") is None
    assert registry.get_sample_value("finetune_queue_depth") == 3
    assert registry.get_sample_value("finetune_watch_age_seconds", {"resource": "pods"}) == 1.5


def test_the_active_process_says_how_often_the_lease_moved_and_whether_reports_arrive() -> None:
    assert collected().get_sample_value("finetune_lease_transitions_total") == 4
    assert collected().get_sample_value("finetune_report_up") == 1
    assert collected(report_up=False).get_sample_value("finetune_report_up") == 0
    assert collected(report_up=None).get_sample_value("finetune_report_up") is None


def test_the_version_shown_is_that_of_the_project_and_of_the_charts() -> None:
    assert finetune_operator.__version__ == version()
    for path in ROOT.glob("charts/*/Chart.yaml"):
        chart = yaml.safe_load(path.read_text())
        assert chart["version"] == chart["appVersion"] == version()


def test_a_new_version_is_written_to_each_file_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hack.version.version", lambda: "1.2.3-rc.1")
    files = versioned_files()
    assert '__version__ = "1.2.3-rc.1"' in files.pop(PACKAGE)
    for text in files.values():
        chart = yaml.safe_load(text)
        assert chart["version"] == chart["appVersion"] == "1.2.3-rc.1"


def test_namespaces_and_profiles_cost_as_many_series_as_the_documentation_says() -> None:
    metrics = OperatorMetrics()

    def series() -> int:
        return sum(len(metric.samples) for metric in metrics.registry.collect())

    before = series()
    metrics.begin_namespace("team")
    verdicts = len(get_args(StrategyType)) * len(get_args(RevisionResult))
    analyses = len(get_args(AnalysisVerdict))
    assert series() - before == 8 + verdicts + analyses <= 40
    before = series()
    metrics.begin_profile("team", "a100")
    assert series() - before == 3 + len(LOST_CAUSES) + 80


def test_gone_and_conflict_are_no_errors() -> None:
    metrics = OperatorMetrics()
    for result in ("ok", "gone", "conflict", "rejected"):
        metrics.reconciled("FineTuneJob", 0.1, result)

    def errors(result: str) -> float | None:
        labels = {"kind": "FineTuneJob", "result": result}
        return metrics.registry.get_sample_value("finetune_reconcile_errors_total", labels)

    assert errors("rejected") == 1
    assert errors("gone") is None
    assert errors("conflict") is None
