# SPDX-License-Identifier: Apache-2.0
"""Preemption by a real Kueue on a cluster with a node: what training keeps.

`make test-peers` runs it in namespaces of its own.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from finetune_client.backend import Object
from tests.e2e import manifests, pods
from tests.e2e.pacing import RESUMED, SAVED
from tests.e2e.team import (
    PATIENCE_SECONDS,
    PAUSE_SECONDS,
    Team,
    condition_of,
    is_running,
    name_of,
    new_namespace,
    uid_of,
)
from tests.peers.kueuemanager import define_queues, running_kueue
from tests.waiting import eventually
from tools.cluster import TestCluster
from tools.cluster.layout import ISOLATED
from tools.cluster.node import GPU_RESOURCE
from tools.demo.admin_access import AdminAccess
from tools.demo.install import images, install

pytestmark = pytest.mark.skipif(
    ISOLATED not in os.environ, reason="needs a cluster of its own: run `python -m tools.peers test`"
)

QUEUED: Final = f"e2e-queued-{manifests.OWN}"
"""Profile whose train Jobs wait in the LocalQueue `gpus`."""
API: Final = "kueue.x-k8s.io/v1beta2"
SPEC: Final[dict[str, Any]] = {
    "method": {"type": "LoRA", "lora": {"r": 8, "alpha": 16, "dropout": 0.1}},
    "hyperparameters": {**manifests.LONG, "epochs": 120},
    # After each step, so that a state is being written whenever the pod is preempted.
    "checkpoints": {"stateEverySteps": 1},
}


def queues() -> str:
    """One device for both teams, and two priorities."""
    quotas = [("cpu", "4"), ("memory", "32Gi"), (GPU_RESOURCE, "1")]
    flavor = {"name": "node", "resources": [{"name": name, "nominalQuota": quota} for name, quota in quotas]}
    spec = {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{"coveredResources": [name for name, _ in quotas], "flavors": [flavor]}],
    }
    labels = {"nodeLabels": {"kubernetes.io/os": "linux"}}
    made = (
        {"kind": "ResourceFlavor", "metadata": {"name": "node"}, "spec": labels},
        {"kind": "ClusterQueue", "metadata": {"name": "gpus"}, "spec": spec},
        {"kind": "WorkloadPriorityClass", "metadata": {"name": "low"}, "value": 1},
        {"kind": "WorkloadPriorityClass", "metadata": {"name": "high"}, "value": 2},
    )
    return yaml.safe_dump_all([{"apiVersion": API, **each} for each in made])


def local_queue() -> Object:
    return {
        "apiVersion": API,
        "kind": "LocalQueue",
        "metadata": {"name": "gpus"},
        "spec": {"clusterQueue": "gpus"},
    }


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminAccess]:
    with TestCluster() as cluster, running_kueue(cluster, tmp_path_factory.mktemp("kueue"), {}):
        define_queues(cluster, queues())
        access = AdminAccess.from_environment()
        install(access, images(), kueue={"enabled": True})
        queued = manifests.profile(QUEUED, GPU_RESOURCE)
        queued["spec"] |= {
            "kueue": {"queues": {"train": "gpus"}, "workloadPriorityClasses": {"train": "low"}},
        }
        for each in (queued, manifests.profile(manifests.GPU, GPU_RESOURCE)):
            access.kubectl("apply", "--server-side", "--filename=-", text=json.dumps(each))
        yield access


@pytest.fixture(scope="module")
def others(access: AdminAccess) -> Iterator[Team]:
    """Another team with the same ClusterQueue."""
    with new_namespace(access, "others", "restricted") as team:
        team.apply(local_queue())
        yield team


@pytest.fixture(scope="module")
def team(access: AdminAccess) -> Iterator[Team]:
    with new_namespace(access, "queued", "restricted") as team:
        team.apply(manifests.claim("artifacts"), manifests.claim("models"), local_queue())
        pods.keep_model(team, images().operator)
        team.apply(
            manifests.configmap("tickets", manifests.jsonl("billing")),
            manifests.dataset("tickets", "tickets"),
        )
        team.until("Dataset", "tickets", "Ready")
        yield team


class Preemptor:
    """Takes the device for a Job of another team, and gives it back."""

    def __init__(self, others: Team, team: Team) -> None:
        self.others = others
        self.team = team

    def preempt(self, run: Object) -> str:
        """Preempt the run, and return the message that it shows while the Job of the other team runs."""
        self.others.apply(self._job())
        eventually("the other team's pod runs", self._runs, PATIENCE_SECONDS, pause=PAUSE_SECONDS)
        shown = eventually(
            "the run shows that it was preempted",
            lambda: self._message(run),
            PATIENCE_SECONDS,
            lambda: self.team.describe("FineTuneJob", name_of(run)),
            PAUSE_SECONDS,
        )
        self.others.kubectl("delete", "job", "urgent")
        return shown

    def _runs(self) -> bool:
        return any(map(is_running, self.others.access.pods(self.others.namespace, "job-name=urgent")))

    def _message(self, run: Object) -> str | None:
        found = condition_of(self.team.get("FineTuneJob", name_of(run)), "Reconciling")
        message: str = found.get("message", "")
        return message if "Preempted" in message else None

    @staticmethod
    def _job() -> Object:
        pod = pods.holder_of(GPU_RESOURCE, 1, images().operator)["spec"]
        (container,) = pod["containers"]
        container["resources"]["requests"] = {"cpu": "10m", "memory": "16Mi"}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": "urgent",
                "labels": {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "high"},
            },
            "spec": {"template": {"spec": pod}},
        }


def test_a_run_that_is_preempted_twice_while_it_saves_ends_with_the_weights_of_a_calm_run(
    team: Team, others: Team
) -> None:
    preemptor = Preemptor(others, team)
    team.apply(
        manifests.finetunejob("unlucky", compute={"profile": QUEUED}, **SPEC),
        manifests.finetunejob("calm", compute={"profile": manifests.GPU}, **SPEC),
    )
    run = team.get("FineTuneJob", "unlucky")
    seen: list[str] = []
    for _ in range(2):
        pod = team.pod(uid_of(run), "train", other_than=tuple(seen))
        if seen:
            team.until_logged(pod, RESUMED)
        team.until_logged(pod, SAVED)
        seen.append(name_of(pod))
        assert "waits in LocalQueue gpus since it was evicted (Preempted)" in preemptor.preempt(run)

    ended = team.until("FineTuneJob", "unlucky", "Ready", "Promoted")
    assert "2 restarts" in condition_of(ended, "Trained")["message"]
    (job,) = team.children("jobs", uid_of(run), "train")
    assert not job["status"].get("failed")
    assert "retry" not in ended["status"]
    calm = team.until("FineTuneJob", "calm", "Ready", "Promoted")
    assert "restarts" not in condition_of(calm, "Trained")["message"]
    weights = [[each["digest"] for each in each_run["status"]["checkpoints"]] for each_run in (ended, calm)]
    assert weights[0] == weights[1]
