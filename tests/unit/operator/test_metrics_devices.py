# SPDX-License-Identifier: Apache-2.0
"""The gauge of devices, parsed as Prometheus parses it."""

from typing import Any

from prometheus_client import CollectorRegistry

from finetune_operator.metrics.device_gauges import DeviceCollector
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.device_use import Calibration

PROFILES = [{"metadata": {"name": "a100"}}, {"metadata": {"name": "l4"}}]
RUNNING = {"containerStatuses": [{"name": "trainer", "state": {"running": {"startedAt": "now"}}}]}
Series = dict[tuple[str, ...], float]
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def labelled(
    kind: str, devices: str | None = "4", *, profile: str = "a100", namespace: str = "team"
) -> Manifest:
    labels = {
        "finetune.dev/owner-kind": kind,
        "finetune.dev/owner-name": "a",
        "finetune.dev/profile": profile,
    }
    if devices is not None:
        labels["finetune.dev/devices"] = devices
    if kind != "InferenceDeployment":
        labels["finetune.dev/stage"] = "train"
    return {"metadata": {"namespace": namespace, "name": "x", "labels": labels}, "spec": {}, "status": {}}


def pod(kind: str, devices: str | None = "4", *, status: Any, node: bool = True, **labels: str) -> Manifest:
    spec = {"nodeName": "n"} if node else {}
    return {**labelled(kind, devices, **labels), "spec": spec, "status": status}


def measured() -> Calibration:
    """Runs with profiles of which one was deleted."""
    calibration = Calibration()
    for profile in ("a100", "deleted"):
        prediction = {"deviceMemoryAvailableBytes": 80, "measured": {"mfu": 0.4}}
        trained = {"type": "Trained", "lastTransitionTime": "2030-01-01T00:00:00Z"}
        status = {
            "resolved": {"profile": profile},
            "training": {"deviceMemoryBytes": 16},
            "prediction": prediction,
            "conditions": [trained],
        }
        metadata = {"namespace": "team", "uid": f"run-on-{profile}"}
        calibration.note({"metadata": metadata, "spec": {"modelLine": "tickets"}, "status": status})
    return calibration


def series(name: str = "finetune_devices", *, active: bool = True, **objects: list[Manifest]) -> Series:
    """Values of the metric by the values of its labels."""
    registry = CollectorRegistry()
    empty: dict[str, list[Manifest]] = {
        kind: [] for kind in ("Pod", "Job", "Deployment", "InferenceDeployment")
    }
    registry.register(
        DeviceCollector({**empty, "ComputeProfile": PROFILES, **objects}, lambda: active, measured())
    )
    (samples,) = (family.samples for family in registry.collect() if family.name == name)
    return {tuple(sample.labels.values()): sample.value for sample in samples}


def test_devices_are_counted_by_team_profile_workload_and_state() -> None:
    pods = [
        pod("FineTuneJob", status=RUNNING),
        pod("FineTuneJob", status={}),
        pod("FineTuneJob", status={}, node=False),
        pod("FineTuneJob", status=RUNNING, profile="l4", namespace="other"),
        pod("Evaluation", "1", status=RUNNING),
        pod("InferenceDeployment", "2", status=READY),
        pod("InferenceDeployment", "2", status={}),
    ]
    found = series(Pod=pods)
    assert {labels: value for labels, value in found.items() if value} == {
        ("team", "a100", "run", "running"): 4,
        ("team", "a100", "run", "starting"): 4,
        ("team", "a100", "run", "waiting"): 4,
        ("other", "l4", "run", "running"): 4,
        ("team", "a100", "evaluation", "running"): 1,
        ("team", "a100", "endpoint", "running"): 2,
        ("team", "a100", "endpoint", "starting"): 2,
    }
    # A state without devices is 0, so that a sum over states has no gap.
    assert found["team", "a100", "run", "ending"] == 0


def test_a_job_in_a_queue_and_a_refused_replica_wait() -> None:
    queued = {**labelled("FineTuneJob"), "spec": {"suspend": True, "parallelism": 2, "completions": 2}}
    refused = {**labelled("InferenceDeployment", "1"), "spec": {"replicas": 3}, "status": {"replicas": 1}}
    found = series(Job=[queued], Deployment=[refused])
    assert found["team", "a100", "run", "waiting"] == 8
    assert found["team", "a100", "endpoint", "waiting"] == 2


def test_labels_that_anyone_may_set_make_no_series() -> None:
    forged = [
        pod("FineTuneJob", status=RUNNING, profile="of-nobody"),
        pod("Dataset", status=RUNNING),
        pod("FineTuneJob", "9" * 60, status=RUNNING),
    ]
    bare = {"metadata": {"namespace": "team", "name": "x"}, "spec": {"nodeName": "n"}, "status": RUNNING}
    assert series(Pod=[*forged, bare]) == {}


def test_a_standby_exports_no_devices() -> None:
    assert series(active=False, Pod=[pod("FineTuneJob", status=RUNNING)]) == {}
    assert series("finetune_device_memory_used_ratio", active=False) == {}


def test_what_runs_used_is_known_for_each_profile_that_exists() -> None:
    assert series("finetune_device_memory_used_ratio") == {("a100",): 0.2}
    assert series("finetune_device_flops_used_ratio") == {("a100",): 0.4}
