# SPDX-License-Identifier: Apache-2.0
"""A node without a kubelet for tests: it reports itself as ready, and binds pods as a scheduler does."""

import time
from datetime import UTC, datetime
from typing import Final

import httpx

from tests.integration.api import Api, Object, path_of

BEAT_SECONDS: Final = 5.0
GONE: Final = {httpx.codes.NOT_FOUND, httpx.codes.CONFLICT}
"""Answers for a pod that was deleted after it was listed."""


class FakeNode:
    """A node that is ready as long as `beat` is called. Pods of a node that is not ready count as lost."""

    def __init__(self, api: Api, name: str) -> None:
        self._api = api
        self._name = name
        self._beaten = 0.0
        api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        self.beat()

    def beat(self) -> None:
        """Report the node as ready, unless it has just done so."""
        if time.monotonic() - self._beaten < BEAT_SECONDS:
            return
        self._beaten = time.monotonic()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
        self._api.patch("Node", "", self._name, {"status": {"conditions": [ready]}}, "status")

    def bind(self, pod: Object) -> None:
        """Assign the pod to the node, unless it has been deleted."""
        target = {"apiVersion": "v1", "kind": "Node", "name": self._name}
        binding = {"metadata": {"name": pod["metadata"]["name"]}, "target": target}
        self._request("POST", f"{_path(pod)}/binding", {"apiVersion": "v1", "kind": "Binding", **binding})

    def remove(self, pod: Object) -> None:
        """Remove a terminating pod, as a kubelet does when its containers have ended."""
        self._request("DELETE", f"{_path(pod)}?gracePeriodSeconds=0")

    def _request(self, method: str, path: str, body: Object | None = None) -> None:
        answer = self._api.request(method, path, body)
        if answer.status_code not in GONE:
            answer.raise_for_status()


def _path(pod: Object) -> str:
    return path_of("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
