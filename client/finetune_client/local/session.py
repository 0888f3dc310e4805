# SPDX-License-Identifier: Apache-2.0
"""Runs in a folder: the operator's reconcilers, controllers and kubelet take turns until all runs end."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from finetune_client.errors import OperationError, ProgramExit
from finetune_client.local import Until
from finetune_client.local.controllers import FIRST_BACKOFF, DeploymentController, JobController, exit_code
from finetune_client.local.kubelet import PORT, Kubelet, VolumeFolders, is_healthy
from finetune_client.local.persistence import Folder, StoredCluster
from finetune_client.local.processes import StageProcesses, StartProcess
from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.labels import OWNER_NAME
from finetune_operator.manifests.labels import REFRESH_REQUESTED
from finetune_operator.observe.pod_status import condition, creation_time, has_condition, has_ended
from finetune_operator.plan import Manifest
from finetune_operator.status.conditions import NOT_PASSED_REASONS, STATES
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.vocabulary import ExitCode


@dataclass(frozen=True, slots=True)
class LastStage:
    """Where a program ends: stages that run, and the condition of a run that is then True."""

    stages: frozenset[str]
    condition: ConditionType


_TRAIN: Final = frozenset({"prepare", "preflight", "train", "collect"})
UNTIL: Final[dict[Until, LastStage]] = {
    "prepare": LastStage(frozenset({"prepare"}), ConditionType.DATASET_READY),
    "preflight": LastStage(frozenset({"prepare", "preflight"}), ConditionType.PREFLIGHTED),
    "train": LastStage(_TRAIN, ConditionType.TRAINED),
    "evaluate": LastStage(_TRAIN | {"evaluate", "score"}, ConditionType.EVALUATED),
}
TICK_SECONDS: Final = 0.2
RECHECK_SECONDS: Final = 2.0
"""Seconds after which the reconcilers look at the objects again, even if nothing has changed."""
PATIENCE_SECONDS: Final = 20.0
"""Seconds without a process and without a change after which a run counts as waiting in vain."""
RUNS: Final = ("FineTuneJob", "Evaluation")
MUTABLE: Final = frozenset({"suspend", "cancel", "childrenTTLSeconds"})
"""Fields of a run's spec that may change."""
BAD_INPUT: Final = (ExitCode.BAD_CONFIG, ExitCode.BAD_DATA)


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run that ended without success.

    Attributes:
        exit_code: exit code of the program.
        message: reason and message of its condition.
        log: log of the pod that failed.
    """

    exit_code: ProgramExit
    message: str
    log: Path | None = None


def activity(manifest: Manifest) -> str:
    """Reason and message of an object's present condition; empty before its first pass."""
    for type_ in STATES:
        found = condition(manifest, type_)
        if found is not None and found["status"] == "True":
            return f"{found['reason']}: {found.get('message', '')}"
    return ""


def _true(manifest: Manifest) -> Iterator[Manifest]:
    """The conditions that are True."""
    conditions = manifest.get("status", {}).get("conditions", ())
    return (each for each in conditions if each["status"] == "True")


def _is_failure(present: Manifest) -> bool:
    """Whether nothing continues. In a cluster, a run waits until its Dataset is mended."""
    type_: str = present["type"]
    reason: str = present["reason"]
    return type_ == ConditionType.STALLED or reason == Reason.DATASET_FAILED


class Session:
    """The objects of a folder, and the processes of their pods. Use it in the block of `Folder.locked`.

    Args:
        folder: the folder.
        volumes: folders in place of volumes.
        start: starts a container; None: as `StageProcesses`.
        probe: readiness probe of an engine at a port.
        first_backoff: delay before the first pod that replaces a failed one.
        pause: waits between two turns.
    """

    def __init__(
        self,
        folder: Folder,
        volumes: VolumeFolders,
        *,
        start: StartProcess | None = None,
        probe: Callable[[int], bool] = is_healthy,
        first_backoff: timedelta = FIRST_BACKOFF,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cluster = StoredCluster(folder)
        self._processes = StageProcesses()
        self.kubelet = Kubelet(self.cluster, folder.root, volumes, start or self._processes, probe)
        self._jobs = JobController(self.cluster, first_backoff)
        self._deployments = DeploymentController(self.cluster)
        self._pause = pause
        self.before_start: Callable[[], None] = lambda: None
        """Called before containers start; what it raises ends the program."""
        self._interrupts = 0
        self._changed_at = time.monotonic()
        self._reconciled_at = float("-inf")
        self._seen = -1
        self.kubelet.recover()

    def apply(self, manifest: Manifest) -> None:
        """Create an object, or bring the spec of an existing one up to date.

        Raises:
            OperationError: it is a run that was started with another spec.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        existing = self.cluster.objects.get((kind, name))
        if existing is None:
            self.cluster.add(manifest)
            return
        if kind not in KINDS_BY_NAME or "spec" not in existing:
            return
        model = KINDS_BY_NAME[kind].model
        old, new = (model.model_validate(each).to_dict().get("spec", {}) for each in (existing, manifest))
        if old == new:
            self._refresh(existing)
            return
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if kind in RUNS and set(changed) - MUTABLE:
            raise OperationError(
                f"{kind} {name} has already run with another {', '.join(changed)}: a run is a record. Give"
                f" the new run another name, for example {name}-v2",
                exit_code=ProgramExit.INVALID,
            )
        existing["spec"] = manifest["spec"]
        self.cluster.change(kind, name)

    def settle(self) -> None:
        """Reconcile what was applied; nothing starts."""
        self.cluster.now = datetime.now(UTC)
        self.cluster.settle()

    def _refresh(self, existing: Manifest) -> None:
        """Let a Dataset whose rows were refused read its source again, which may be mended."""
        if existing["kind"] == "Dataset" and has_condition(existing, ConditionType.STALLED, "True"):
            marks = existing["metadata"].setdefault("annotations", {})
            marks[REFRESH_REQUESTED] = datetime.now(UTC).isoformat()
            self.cluster.written(("Dataset", existing["metadata"]["name"]))

    def turn(self) -> None:
        """One turn of reconcilers, controllers and kubelet."""
        cluster = self.cluster
        cluster.now = datetime.now(UTC)
        now = time.monotonic()
        if cluster.changes != self._seen or self.kubelet.is_busy:
            self._changed_at = now
        if cluster.changes != self._seen or now - self._reconciled_at >= RECHECK_SECONDS:
            self._seen, self._reconciled_at = cluster.changes, now
            cluster.settle()
            self._jobs.sync()
            self._deployments.sync()
        self.before_start()
        self.kubelet.sync()

    def follow(self, done: Callable[[], bool]) -> Iterator[None]:
        """Take turns until `done` is true; yields after each.

        Raises:
            OperationError: nothing happens any more, so that it will never be true.
            KeyboardInterrupt: `interrupt` was called, and all processes have ended.
        """
        self._changed_at = time.monotonic()
        while not self._interrupts:
            self.turn()
            yield
            if done():
                return
            if self._waits_in_vain():
                raise OperationError(
                    f"nothing can continue. {self._activities()}", exit_code=ProgramExit.INVALID
                )
            self._pause(TICK_SECONDS)
        self._end_processes()
        raise KeyboardInterrupt

    def interrupt(self) -> None:
        """The first call lets all processes save their state and end; the second one kills them."""
        self._interrupts += 1

    def close(self) -> None:
        """End what still runs."""
        self._end_processes()
        self._processes.close()

    def _end_processes(self) -> None:
        self.kubelet.terminate_all()
        while self.kubelet.is_busy:
            if self._interrupts > 1:
                self.kubelet.kill_all()
            self.cluster.now = datetime.now(UTC)
            self.kubelet.observe()
            self._pause(TICK_SECONDS)

    def _waits_in_vain(self) -> bool:
        is_still = time.monotonic() - self._changed_at >= PATIENCE_SECONDS
        is_still = is_still and self.cluster.changes == self._seen
        return is_still and not self.kubelet.is_busy and self._jobs.next_start() is None

    def _activities(self) -> str:
        texts = (
            f"{kind} {name}: {text}"
            for kind in (*RUNS, "InferenceDeployment")
            for name, obj in self.cluster.of(kind).items()
            if not has_condition(obj, ConditionType.READY, "True") and (text := activity(obj))
        )
        return "; ".join(texts)

    def failure(self, kind: str, name: str) -> FailedRun | None:
        """Why a run failed; None if it has not."""
        run = self.cluster.objects[kind, name]
        stalled = next((each for each in _true(run) if _is_failure(each)), None)
        if stalled is None:
            return None
        message = f"{stalled['reason']}: {stalled.get('message', '')}"
        if stalled["reason"] in NOT_PASSED_REASONS:
            return FailedRun(ProgramExit.GATES_FAILED, message)
        pod = self._failed_pod(run)
        if pod is None:
            return FailedRun(ProgramExit.INVALID, message)
        is_input = exit_code(pod) in BAD_INPUT
        container = pod["spec"]["containers"][0]["name"]
        log = self.kubelet.log_of(pod["metadata"]["name"], container)
        return FailedRun(ProgramExit.INVALID if is_input else ProgramExit.FAILED, message, log)

    def _failed_pod(self, run: Manifest) -> Manifest | None:
        """The pod that failed last, of the run or of its Dataset."""
        datasets = [each["metadata"]["uid"] for each in self.cluster.of("Dataset").values()]
        owners = {run["metadata"]["uid"], *datasets}
        jobs = {
            job["metadata"]["uid"]
            for job in self.cluster.of("Job").values()
            if {each["uid"] for each in job["metadata"]["ownerReferences"]} & owners
        }
        pods = [
            pod
            for pod in self.cluster.of("Pod").values()
            if has_ended(pod) and pod["metadata"]["ownerReferences"][0]["uid"] in jobs and exit_code(pod)
        ]
        return max(pods, key=creation_time, default=None)

    def url(self, endpoint: str) -> str | None:
        """Base URL of an endpoint whose engine is ready; None before that."""
        return engine_url(self.cluster, endpoint)


def engine_url(cluster: StoredCluster, endpoint: str) -> str | None:
    """Base URL of an endpoint whose engine is ready; None before that."""
    owner = cluster.objects["InferenceDeployment", endpoint]
    if not has_condition(owner, ConditionType.READY, "True"):
        return None
    for pod in cluster.of("Pod").values():
        labels, marks = pod["metadata"].get("labels", {}), pod["metadata"].get("annotations", {})
        if labels.get(OWNER_NAME) == endpoint and PORT in marks and has_condition(pod, "Ready", "True"):
            return f"http://127.0.0.1:{marks[PORT]}/v1"
    return None
