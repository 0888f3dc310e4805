# SPDX-License-Identifier: Apache-2.0
"""The tests' fake kubelet records a stage as started when its pod's status says so."""

from typing import Any

from finetune_trainer.contract.configs import CleanupConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from tests.fakekubelet import FakeKubelet
from tests.integration.api import NotFound
from tests.waiting import eventually
from tools.fakepods import digest

Object = dict[str, Any]


def pod(phase: str = "Pending") -> Object:
    config = CleanupConfig(
        owner=Owner(kind="DatasetVersion", namespace="team", name="rows-1", uid="1f1f"),
        store=StoreConfig(uri="pvc://artifacts", path="/store"),
        artifact=ArtifactRef(kind="datasets", digest=digest("rows")),
    )
    container = {"name": "trainer", "image": "x", "env": [{"name": CONFIG_ENV, "value": config.to_json()}]}
    return {
        "metadata": {"namespace": "team", "name": "rows-1-cleanup"},
        "spec": {"containers": [container]},
        "status": {"phase": phase},
    }


class Pods:
    """An API server with one pod, which records the started stages at each write."""

    def __init__(self) -> None:
        self.pod = pod()
        self.kubelet: FakeKubelet | None = None
        self.known: list[list[str]] = []

    def list(self, _kind: str, _namespace: str) -> list[Object]:
        return [self.pod] if self.kubelet is not None else []

    def patch(self, _kind: str, _namespace: str, _name: str, body: Object, _subresource: str = "") -> Object:
        assert self.kubelet is not None
        self.known.append([*self.kubelet.started])
        self.pod = {**self.pod, **body}
        return self.pod


class Gone(Pods):
    """An API server whose pod is deleted between a poll and the write."""

    def patch(self, *arguments: Any) -> Object:
        super().patch(*arguments)
        raise NotFound


def test_a_stage_has_started_once_its_pod_runs() -> None:
    api = Pods()
    kubelet = FakeKubelet(api, "team", pause=0.001)
    kubelet.held.add("cleanup")
    api.kubelet = kubelet

    eventually("the cleanup has started", lambda: kubelet.started)
    kubelet.close()

    assert kubelet.started == ["cleanup"]
    assert api.known == [[]]
    assert api.pod["status"]["phase"] == "Running"


def test_a_pod_that_was_deleted_before_has_not_started() -> None:
    api = Gone()
    kubelet = FakeKubelet(api, "team", pause=0.001)
    kubelet.held.add("cleanup")
    api.kubelet = kubelet

    eventually("it was tried", lambda: api.known)
    kubelet.close()

    assert kubelet.started == []
