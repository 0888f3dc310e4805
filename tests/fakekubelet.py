# SPDX-License-Identifier: Apache-2.0
"""A fake kubelet for control planes without nodes: it patches the status of pods.

The pod of a stage runs, and then ends with a result for its config, unless its stage is held. A serving pod
becomes ready.
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol

from finetune_trainer.contract.configs import CleanupConfig, StageConfig
from finetune_trainer.contract.results import StageResult
from tests.integration.api import NotFound
from tools.fakepods import config_of, ended, running, succeeded

Object = dict[str, Any]


class PodApi(Protocol):
    """The requests of the fake kubelet to the API server."""

    def list(self, kind: str, namespace: str) -> list[Object]: ...

    def patch(self, kind: str, namespace: str, name: str, body: Object, subresource: str = "") -> Object: ...


class FakeKubelet:
    """Polls the pods of a namespace until it is closed.

    Args:
        api: access to the API server.
        namespace: namespace of the pods.
        outcome: result of a stage with this config; None for a pod that succeeds without a message.
        pause: seconds between two polls.

    Attributes:
        held: stages whose pods keep running.
        started: stages whose pods run or have run, in the order of their starts.
    """

    def __init__(
        self,
        api: PodApi,
        namespace: str,
        outcome: Callable[[StageConfig], StageResult | None] = succeeded,
        pause: float = 0.1,
    ) -> None:
        self.held: set[str] = set()
        self.started: list[str] = []
        self._api = api
        self._namespace = namespace
        self._outcome = outcome
        self._pause = pause
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fake kubelet", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop polling.

        Raises:
            AssertionError: a request failed.
        """
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise AssertionError("the fake kubelet failed") from self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause):
                for pod in self._api.list("Pod", self._namespace):
                    self._step(pod)
        except BaseException as error:
            self._failure = error
            raise

    def _step(self, pod: Object) -> None:
        phase = pod["status"]["phase"]
        if "deletionTimestamp" in pod["metadata"] or phase in {"Succeeded", "Failed"}:
            return
        if pod["spec"].get("schedulingGates"):
            return
        config = config_of(pod)
        if phase == "Pending":
            if self._patch(pod, running(pod)):
                self.started.append(config.stage)
        elif config.stage in self.held:
            return
        elif isinstance(config, StageConfig):
            self._patch(pod, ended(pod, self._outcome(config)))
        elif isinstance(config, CleanupConfig):
            self._patch(pod, ended(pod, None))

    def _patch(self, pod: Object, status: Object) -> bool:
        """Patch the status; returns whether the pod still existed."""
        metadata = pod["metadata"]
        try:
            self._api.patch("Pod", metadata["namespace"], metadata["name"], {"status": status}, "status")
        except NotFound:
            return False
        return True
