# SPDX-License-Identifier: Apache-2.0
"""Logs of a run's pods: their order, the pods that come later, and what is printed without any."""

from collections.abc import Iterator, Mapping

import pytest
from typing_extensions import override

from finetune_client import cluster
from finetune_client.access import Access
from finetune_client.backend import Object
from finetune_client.cluster import ClusterBackend
from finetune_client.errors import OperationError
from tests.unit.client.followedruns import condition, job


def pod(name: str, stage: str, phase: str = "Succeeded", at: int = 0) -> Object:
    labels = {"finetune.dev/stage": stage}
    return {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": f"2026-03-01T12:00:0{at}Z"},
        "spec": {"containers": [{"name": "stage"}]},
        "status": {"phase": phase},
    }


class Pods(Access):
    """A run that ends when it has been read as often as there are moments, each with its pods."""

    def __init__(self, *moments: list[Object]) -> None:
        self.moments = list(moments)
        self.selected: list[str] = []

    @override
    def object(self, kind: str, namespace: str, name: str) -> Object | None:
        if name != "routing":
            return None
        return job(condition("Ready")) if len(self.moments) == 1 else job()

    @override
    def pods(self, namespace: str, selector: str) -> list[Object]:
        self.selected.append(selector)
        return self.moments.pop(0)

    @override
    def stream(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[str]:
        yield f"{path.split('/')[-2]} {dict(query or {})}"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FOLLOW_SECONDS", 0.0)


def names(pods: Pods, *, follow: bool = False) -> list[str]:
    return [line.text.split()[0] for line in ClusterBackend(pods, "team").logs("routing", follow=follow)]


def test_pods_come_in_the_order_of_the_stages_and_then_of_their_creation() -> None:
    pods = Pods(
        [pod("e", "evaluate"), pod("t2", "train", at=2), pod("t1", "train", "Failed", 1), pod("p", "prepare")]
    )
    assert names(pods) == ["p", "t1", "t2", "e"]


def test_a_pod_that_has_not_started_has_no_log_and_is_read_when_it_has() -> None:
    pods = Pods([pod("t", "train", "Pending")], [pod("t", "train", "Running")], [pod("t", "train")])
    assert names(pods, follow=True) == ["t"]


def test_following_ends_with_the_run_and_reads_the_pods_of_later_stages() -> None:
    pods = Pods([pod("p", "prepare")], [pod("p", "prepare"), pod("t", "train", "Running")])
    found = list(ClusterBackend(pods, "team").logs("routing", follow=True))
    assert [line.pod for line in found] == ["p", "t"]
    assert ["follow" in line.text for line in found] == [False, True]


def test_one_stage_is_selected_by_its_label() -> None:
    pods = Pods([pod("t", "train")])
    list(ClusterBackend(pods, "team").logs("routing", "train"))
    assert pods.selected == ["finetune.dev/run=u,finetune.dev/stage=train"]


def test_a_run_that_does_not_exist_is_named() -> None:
    with pytest.raises(OperationError, match="FineTuneJob other does not exist in namespace team"):
        list(ClusterBackend(Pods([]), "team").logs("other"))
