"""Stands for the kubelet where there is no node: patches the status of pods as it would.

A stage's pod runs, and then ends with a result that fits its config, unless it is held or told to fail.
A serving pod becomes ready.
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol

from finetune_trainer.contract.configs.cleanup import CleanupConfig
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.results import StageResult
from tests.integration.api import NotFound
from tools.fakepods import config_of, ended, running, succeeded

Object = dict[str, Any]


class PodApi(Protocol):
    """What the fake kubelet needs of the API server."""

    def list(self, kind: str, namespace: str) -> list[Object]: ...

    def patch(self, kind: str, namespace: str, name: str, body: Object, subresource: str = "") -> Object: ...


class FakeKubelet:
    """Looks at the namespace's pods again and again until it is closed.

    Args:
        outcome: result of a stage with this config; None for a pod that ends well without a word.
        pause: seconds between two looks.

    Attributes:
        held: stages whose pods keep running.
        started: name of each stage whose pod runs or has run, in order of their starts.
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
        """Stop.

        Raises:
            AssertionError: it could not do its work.
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
        """Whether the pod was still there."""
        metadata = pod["metadata"]
        try:
            self._api.patch("Pod", metadata["namespace"], metadata["name"], {"status": status}, "status")
        except NotFound:
            return False
        return True
