# SPDX-License-Identifier: Apache-2.0
"""Devices that pods hold, and pods that Jobs and Deployments lack."""

from typing import Any

import pytest

from finetune_operator.observe.device_usage import (
    HELD,
    DeviceState,
    device_state,
    devices_per_pod,
    job_devices,
    missing_job_pods,
    missing_replicas,
)
from finetune_operator.plan import Manifest

STAGE = {"finetune.dev/stage": "train", "finetune.dev/devices": "4"}
RUNNING = {"containerStatuses": [{"name": "trainer", "state": {"running": {"startedAt": "now"}}}]}
PULLING = {"containerStatuses": [{"name": "trainer", "state": {"waiting": {}}}]}
ANSWERING = {
    "initContainerStatuses": [{"name": "answers", "state": {"terminated": {"exitCode": 0}}}],
    "containerStatuses": [{"name": "trainer", "state": {"waiting": {}}}],
}


def pod(
    labels: dict[str, str], node: str | None, status: Manifest | None = None, *, ending: bool = False
) -> Manifest:
    metadata = {"labels": labels, **({"deletionTimestamp": "now"} if ending else {})}
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": status or {}}


def ready(status: str) -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": status or {}}]}


@pytest.mark.parametrize(
    ("obj", "state"),
    [
        (pod(STAGE, None), "waiting"),
        (pod(STAGE, None, ending=True), "waiting"),
        (pod(STAGE, "n", PULLING), "starting"),
        (pod(STAGE, "n", RUNNING), "running"),
        (pod(STAGE, "n", ANSWERING), "running"),
        (pod(STAGE, "n", RUNNING, ending=True), "ending"),
        (pod(STAGE, "n", {"phase": "Succeeded", **RUNNING}), None),
        (pod(STAGE, "n", {"phase": "Failed"}), None),
        (pod({}, None), "waiting"),
        (pod({}, "n", ready("False")), "starting"),
        (pod({}, "n", ready("True")), "running"),
        (pod({}, "n", ready("False"), ending=True), "ending"),
    ],
)
def test_a_pod_holds_devices_from_its_node_to_its_end(obj: Manifest, state: DeviceState | None) -> None:
    assert device_state(obj) == state
    assert (state in HELD) == (state not in {None, "waiting"})


@pytest.mark.parametrize(
    ("labels", "devices"),
    [
        (STAGE, 4),
        ({"finetune.dev/devices": "2"}, 2),
        ({"finetune.dev/stage": "fill"}, 0),
        ({**STAGE, "finetune.dev/devices": "many"}, 0),
        ({"finetune.dev/devices": "-1"}, 0),
        ({**STAGE, "finetune.dev/devices": "999"}, 0),
    ],
    ids=["stage", "replica", "stage without devices", "text", "negative", "more than the limit"],
)
def test_the_label_of_a_pod_says_how_many_devices_it_has(labels: dict[str, str], devices: int) -> None:
    assert devices_per_pod(pod(labels, "n")) == devices


@pytest.mark.parametrize(
    ("spec", "status", "missing"),
    [
        ({"suspend": True, "parallelism": 4, "completions": 4}, {}, 4),
        ({}, {}, 1),
        ({}, {"active": 1}, 0),
        ({"parallelism": 4, "completions": 4}, {"active": 1, "succeeded": 2}, 1),
        ({}, {"succeeded": 1}, 0),
        ({}, {"conditions": [{"type": "Failed", "status": "True"}]}, 0),
        ({}, {"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]}, 0),
    ],
    ids=["queued", "refused by a quota", "has its pod", "lacks one of four", "done", "failed", "ends"],
)
def test_a_job_lacks_the_pods_that_it_wants_and_does_not_have(
    spec: dict[str, Any], status: dict[str, Any], missing: int
) -> None:
    assert missing_job_pods({"metadata": {}, "spec": spec, "status": status or {}}) == missing


def test_a_job_that_is_being_deleted_lacks_nothing() -> None:
    assert missing_job_pods({"metadata": {"deletionTimestamp": "now"}, "spec": {}}) == 0


@pytest.mark.parametrize(
    ("spec", "status", "devices"),
    [
        ({"suspend": True}, {}, 4),
        ({"parallelism": 3, "completions": 3}, {"active": 2}, 12),
        ({"parallelism": 3, "completions": 3}, {"active": 2, "succeeded": 2}, 4),
        ({}, {"conditions": [{"type": "Failed", "status": "True"}]}, 0),
    ],
    ids=["queued", "several pods", "one pod left", "failed"],
)
def test_a_job_uses_or_waits_for_the_devices_of_its_unfinished_pods(
    spec: dict[str, Any], status: dict[str, Any], devices: int
) -> None:
    assert job_devices({"metadata": {"labels": STAGE}, "spec": spec, "status": status}) == devices


@pytest.mark.parametrize(("metadata", "missing"), [({}, 2), ({"deletionTimestamp": "now"}, 0)])
def test_a_deployment_lacks_the_replicas_that_do_not_exist(metadata: dict[str, Any], missing: int) -> None:
    assert (
        missing_replicas({"metadata": metadata, "spec": {"replicas": 3}, "status": {"replicas": 1}})
        == missing
    )
