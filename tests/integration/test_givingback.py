# SPDX-License-Identifier: Apache-2.0
"""Two runs of two pods and room for two pods: both train, one after the other, without a queue."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from finetune_operator.observe.pod_status import index_of
from finetune_operator.reconcile.stages.gang_deadlock import RELEASE_AFTER
from tests.fakekubelet import FakeKubelet
from tests.fakenode import FakeNode
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.manifests import condition, profile_name
from tests.integration.operators import Operators
from tests.waiting import eventually

NODE = "small"
WAIT_SECONDS = 240
"""A run that gave back requests its devices again after a minute."""

pytestmark = pytest.mark.full


class SmallNode(FakeKubelet):
    """One node with room for two train pods. At first it takes one of each run, which is the deadlock."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._requests = api
        self._node = FakeNode(api, NODE)
        self._collided = False
        super().__init__(api, namespace)

    def _step(self, pod: Object) -> None:
        self._node.beat()
        is_bound = "nodeName" in pod["spec"]
        if "deletionTimestamp" in pod["metadata"] and is_bound:
            self._node.remove(pod)
        elif pod["metadata"]["labels"].get("finetune.dev/stage") != "train" or is_bound:
            super()._step(pod)
        elif self._has_room(pod):
            self._node.bind(pod)
        elif not pod["status"].get("conditions"):
            self._refuse(pod)

    def _has_room(self, pod: Object) -> bool:
        owners = [
            each["metadata"]["ownerReferences"][0]["uid"]
            for each in self._requests.list("Pod", pod["metadata"]["namespace"])
            if "nodeName" in each["spec"] and each["status"]["phase"] in {"Pending", "Running"}
        ]
        self._collided = self._collided or len(set(owners)) == 2
        return len(owners) < 2 and (self._collided or index_of(pod) == 0)

    def _refuse(self, pod: Object) -> None:
        lacks = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            # As if the pod had waited, so that the test does not.
            "lastTransitionTime": (datetime.now(UTC) - RELEASE_AFTER).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self._patch(pod, {"conditions": [lacks]})


@pytest.fixture
def node(api: Api, namespace: str) -> Iterator[SmallNode]:
    manifests.prepare_namespace(api, namespace)
    node = SmallNode(api, namespace)
    yield node
    node.close()
    api.delete("Node", "", NODE)


def test_two_runs_that_each_hold_half_of_what_they_need_both_train(
    api: Api, namespace: str, operators: Operators, node: SmallNode
) -> None:
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    compute = {"profile": profile_name(namespace), "nodes": 2}
    node.held.add("train")
    for name in ("first", "second"):
        api.create(manifests.finetunejob(namespace, name, compute=compute, evaluation=None))

    def reasons() -> list[str | None]:
        return [
            condition(api.get("FineTuneJob", namespace, name), "Reconciling").get("reason")
            for name in ("first", "second")
        ]

    eventually(
        "one gives back",
        lambda: any(
            (api.get("FineTuneJob", namespace, name) or {})["status"].get("retry", {}).get("gaveBack")
            for name in ("first", "second")
        ),
        WAIT_SECONDS,
        lambda: operator.log[-4000:],
    )
    eventually("the other one trains", lambda: "Training" in reasons(), WAIT_SECONDS)
    node.held.clear()
    eventually(
        "both are ready",
        lambda: all(
            manifests.is_true(api.get("FineTuneJob", namespace, name), "Ready")
            for name in ("first", "second")
        ),
        WAIT_SECONDS,
        lambda: operator.log[-4000:],
    )
