"""Looks at a run again and again until it is where it should be, or cannot get there."""

import time
from collections.abc import Callable
from typing import Final

from rich.console import Console

from finetune_operator.manifests.labels import RUN
from tools.demo.access import Access
from tools.demo.errors import DemoError
from tools.demo.namespace import NAMESPACE
from tools.demo.stages import DemoStatus, now, true_condition
from tools.demo.view import view

POLL_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 900.0
"""Without any change of the run or the endpoint, it is stuck."""
LOG_LINES: Final = 5
"""Of each container of a failed run."""


class Follower:
    """Follows one run and the endpoint of its model line."""

    def __init__(self, access: Access, console: Console, job: str, endpoint: str) -> None:
        self._access = access
        self._job = job
        self._endpoint = endpoint
        self._extra: Callable[[], str] = lambda: ""
        self._view = view(console, self._extra_line)

    def _extra_line(self) -> str:
        return self._extra()

    def look(self) -> DemoStatus:
        """The run as it is now.

        Raises:
            DemoError: somebody deleted it.
        """
        job = self._access.object("FineTuneJob", NAMESPACE, self._job)
        if job is None:
            raise DemoError(f"FineTuneJob {self._job} is gone")
        endpoint = self._access.object("InferenceDeployment", NAMESPACE, self._endpoint)
        return DemoStatus.of(job, endpoint, self._access.events(NAMESPACE), now())

    def until(self, done: Callable[[DemoStatus], bool], extra: Callable[[], str] = lambda: "") -> DemoStatus:
        """Show the run until `done`, and the snapshot that was.

        Raises:
            DemoError: the run or the endpoint failed, or nothing changed for a quarter of an hour.
        """
        changed_at, before = time.monotonic(), ""
        self._extra = extra
        with self._view as shown:
            while True:
                snapshot = self.look()
                shown.show(snapshot)
                if done(snapshot):
                    return snapshot
                self._complain(snapshot)
                state = f"{snapshot.job.status!r} {snapshot.endpoint!r}"
                if state != before:
                    changed_at, before = time.monotonic(), state
                elif time.monotonic() - changed_at > PATIENCE_SECONDS:
                    raise self._failure(snapshot, f"nothing has changed for a while: {snapshot.doing}")
                time.sleep(POLL_SECONDS)

    def _complain(self, snapshot: DemoStatus) -> None:
        stalled = snapshot.condition("Stalled")
        if stalled is not None:
            raise self._failure(snapshot, f"FineTuneJob {self._job}: {stalled.reason}: {stalled.message}")
        if snapshot.endpoint is not None:
            stalled = true_condition(snapshot.endpoint.status.conditions, "Stalled")
            if stalled is not None:
                raise self._failure(
                    snapshot, f"InferenceDeployment {self._endpoint}: {stalled.reason}: {stalled.message}"
                )

    def _failure(self, snapshot: DemoStatus, message: str) -> DemoError:
        uids = [snapshot.job.uid] + ([snapshot.endpoint.uid] if snapshot.endpoint else [])
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
