# SPDX-License-Identifier: Apache-2.0
"""Poll a run until it reaches a state, and show its progress."""

import time
from collections.abc import Callable
from typing import Final

from rich.console import Console

from finetune_operator.manifests.labels import RUN
from tools.demo.access import Access
from tools.demo.display import create_view
from tools.demo.errors import DemoError
from tools.demo.namespace import NAMESPACE
from tools.demo.runstate import DemoStatus, now, true_condition

POLL_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 900.0
"""A run and its endpoint without any change for so long count as stuck."""
LOG_LINES: Final = 5
"""Number of log lines per container of a failed run."""


class Follower:
    """Follows one run and the endpoint of its model line."""

    def __init__(self, access: Access, console: Console, job: str, endpoint: str) -> None:
        self._access = access
        self._job = job
        self._endpoint = endpoint
        self._extra: Callable[[], str] = lambda: ""
        self._view = create_view(console, self._extra_line)

    def _extra_line(self) -> str:
        return self._extra()

    def status(self) -> DemoStatus:
        """The present state of the run and its endpoint.

        Raises:
            DemoError: the run was deleted.
        """
        job = self._access.object("FineTuneJob", NAMESPACE, self._job)
        if job is None:
            raise DemoError(f"FineTuneJob {self._job} was deleted")
        endpoint = self._access.object("InferenceDeployment", NAMESPACE, self._endpoint)
        return DemoStatus.of(job, endpoint, self._access.events(NAMESPACE), now())

    def until(self, done: Callable[[DemoStatus], bool], extra: Callable[[], str] = lambda: "") -> DemoStatus:
        """Show the run until `done` is true, and return that state.

        Args:
            done: condition to wait for.
            extra: an additional line to show.

        Raises:
            DemoError: the run or the endpoint is stalled, or nothing changed for PATIENCE_SECONDS.
        """
        changed_at, before = time.monotonic(), ""
        self._extra = extra
        with self._view as view:
            while True:
                status = self.status()
                view.show(status)
                if done(status):
                    return status
                self._raise_if_stalled(status)
                state = f"{status.job.status!r} {status.endpoint!r}"
                if state != before:
                    changed_at, before = time.monotonic(), state
                elif time.monotonic() - changed_at > PATIENCE_SECONDS:
                    minutes = PATIENCE_SECONDS / 60
                    raise self._failure(status, f"no change for {minutes:.0f} min: {status.activity}")
                time.sleep(POLL_SECONDS)

    def _raise_if_stalled(self, status: DemoStatus) -> None:
        stalled = status.condition("Stalled")
        if stalled is not None:
            raise self._failure(status, f"FineTuneJob {self._job}: {stalled.reason}: {stalled.message}")
        if status.endpoint is not None:
            stalled = true_condition(status.endpoint.status.conditions, "Stalled")
            if stalled is not None:
                raise self._failure(
                    status, f"InferenceDeployment {self._endpoint}: {stalled.reason}: {stalled.message}"
                )

    def _failure(self, status: DemoStatus, message: str) -> DemoError:
        uids = [status.job.uid] + ([status.endpoint.uid] if status.endpoint else [])
        selector = f"{RUN} in ({','.join(uids)})"
        logs = self._access.kubectl(
            "logs", f"--namespace={NAMESPACE}", f"--selector={selector}", f"--tail={LOG_LINES}",
            "--all-containers", "--prefix", "--ignore-errors",
        )  # fmt: skip
        return DemoError(
            message,
            [
                f"kubectl -n {NAMESPACE} describe finetunejob {self._job}",
                f"kubectl -n {NAMESPACE} describe inferencedeployment {self._endpoint}",
                f"kubectl -n {NAMESPACE} get pods",
                f"kubectl -n {NAMESPACE} logs --selector='{selector}' --all-containers --prefix",
                "kubectl -n finetune-system logs deployment/finetune-operator",
            ],
            logs.splitlines(),
        )
