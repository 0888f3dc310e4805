# SPDX-License-Identifier: Apache-2.0
"""The kubelet of local runs: each container of a pod is a process of this machine.

Volumes are folders. The mount paths in a container's config become the paths of these folders. Pods of Jobs
run one after the other; init containers run before the container of their pod.
"""

import json
import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from finetune_client.local.cluster import Cluster, at
from finetune_client.local.files import Content
from finetune_client.local.processes import (
    CUDA_DEVICES_ENV,
    ContainerProcess,
    Launch,
    StartProcess,
    end_left_processes,
)
from finetune_client.local.profile import CUDA
from finetune_operator.observe.pod_status import has_ended
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import RunProgress
from finetune_trainer.contract.configs import CONFIG_ADAPTER, StageConfig
from finetune_trainer.contract.environment import (
    CONFIG_ENV,
    PROGRESS_ENV,
    SERVE_HOST_ENV,
    SERVE_PORT,
    TERMINATION_MESSAGE_ENV,
)
from finetune_trainer.contract.results import Progress
from finetune_trainer.contract.serving import ServeConfig

HOST: Final = "127.0.0.1"
PORT: Final = "local.finetune.dev/port"
"""Annotation of a serving pod: its port on this machine."""
RESTARTS: Final = "local.finetune.dev/restarts"
RESTART_AT: Final = "local.finetune.dev/restart-at"
"""Annotations of a serving pod whose container crashed."""
DEFAULT_GRACE_SECONDS: Final = 30
KILLED: Final = 137
PROBE_SECONDS: Final = 1.0
FIRST_RESTART: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class VolumeFolders:
    """Folders of claims, and contents of ConfigMaps and Secrets, by name."""

    claims: Mapping[str, Path] = field(default_factory=dict)
    configmaps: Mapping[str, Content] = field(default_factory=dict)
    secrets: Mapping[str, Content] = field(default_factory=dict)


@dataclass(slots=True)
class Running:
    """The container of a pod that runs now."""

    pod: Manifest
    container: Manifest
    is_init: bool
    process: ContainerProcess
    started: datetime
    message: Path
    progress: Path
    digests: Mapping[str, str]
    """Digest of the config, by the digest of the config with the paths of this machine."""
    stage: str
    port: int | None = None
    kill_at: datetime | None = None
    """Time at which a process that received SIGTERM is killed."""


def is_healthy(port: int) -> bool:
    """Whether an engine answers its readiness probe."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=PROBE_SECONDS) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def log_path(root: Path, pod: str, container: str) -> Path:
    """File with the log of a container, in a folder of local runs."""
    return root / "logs" / f"{pod}-{container}.log"


def free_port(first: int = SERVE_PORT) -> int:
    """The first port from this one on which nothing listens."""
    for port in range(first, first + 1000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise OSError(f"no free port from {first} to {first + 999}")


class Kubelet:
    """Runs the pods of a cluster.

    Args:
        cluster: the cluster.
        root: folder for logs and volumes.
        volumes: folders of the user.
        start: starts a container.
        probe: readiness probe of an engine at a port.

    Attributes:
        stages: stages whose pods may start; None: all.
        serves: whether pods of endpoints may start.
    """

    def __init__(
        self,
        cluster: Cluster,
        root: Path,
        volumes: VolumeFolders,
        start: StartProcess,
        probe: Callable[[int], bool] = is_healthy,
    ) -> None:
        self.stages: frozenset[str] | None = None
        self.serves = False
        self._cluster = cluster
        self._root = root
        self._volumes = volumes
        self._start = start
        self._probe = probe
        self._running: dict[str, Running] = {}

    @property
    def is_busy(self) -> bool:
        """Whether a container runs."""
        return bool(self._running)

    @property
    def running_stage(self) -> str | None:
        """Stage of a Job's pod that runs now."""
        return next((each.stage for each in self._running.values() if _is_of_job(each.pod)), None)

    def log_of(self, pod: str, container: str) -> Path:
        """File with the log of a container."""
        return log_path(self._root, pod, container)

    def recover(self) -> None:
        """Take over the folder of a program that ended: end what it left, and mark its pods as disrupted.

        A disruption counts as no failure, so that each Job gets another pod, which resumes.
        """
        end_left_processes(self._root / "locks")
        for name, pod in self._cluster.of("Pod").items():
            if not _is_of_job(pod):
                self._cluster.remove("Pod", name)
            elif not has_ended(pod) and pod["status"].get("phase") == "Running":
                self._disrupt(pod, "the program ended")
            self._remove_volumes(name)

    def sync(self) -> None:
        """Start and end containers, and report their states."""
        self.observe()
        for name, pod in self._cluster.of("Pod").items():
            if name not in self._running and not has_ended(pod) and self._may_start(pod):
                self._start_next(pod)

    def observe(self) -> None:
        """Report the states of the containers that run; start none."""
        for name, running in list(self._running.items()):
            self._observe(name, running)

    def terminate_all(self) -> None:
        """Send SIGTERM to all containers."""
        for running in self._running.values():
            self._terminate(running)

    def kill_all(self) -> None:
        """Send SIGKILL to all containers."""
        for running in self._running.values():
            running.process.kill()

    def _may_start(self, pod: Manifest) -> bool:
        if "deletionTimestamp" in pod["metadata"]:
            return True
        if not _is_of_job(pod):
            restart = pod["metadata"].get("annotations", {}).get(RESTART_AT)
            return self.serves and (restart is None or datetime.fromisoformat(restart) <= self._cluster.now)
        config = json.loads(_config_text(pod["spec"]["containers"][0]))
        return self.running_stage is None and (self.stages is None or config["stage"] in self.stages)

    def _start_next(self, pod: Manifest) -> None:
        """Start the first container of a pod that has not run. A pod that is terminating ends at once."""
        if "deletionTimestamp" in pod["metadata"]:
            self._cluster.delete("Pod", pod["metadata"]["name"])
            return
        statuses = pod["status"].get("initContainerStatuses", ())
        done = {each["name"] for each in statuses if "terminated" in each.get("state", {})}
        waiting = [each for each in pod["spec"].get("initContainers", ()) if each["name"] not in done]
        container = waiting[0] if waiting else pod["spec"]["containers"][0]
        self._run(pod, container, is_init=bool(waiting))

    def _run(self, pod: Manifest, container: Manifest, *, is_init: bool) -> None:
        name = pod["metadata"]["name"]
        folder = self._root / "pods" / name
        folder.mkdir(parents=True, exist_ok=True)
        own = container["name"]
        message, progress = folder / f"{own}.message", folder / f"{own}.progress"
        for path in (message, progress):
            path.unlink(missing_ok=True)
        folders = self._mounts(pod, container)
        original = CONFIG_ADAPTER.validate_json(_config_text(container))
        # With the fields at their defaults, some of which are mount paths that the config leaves out.
        fields = original.model_dump(mode="json", by_alias=True, context=folders)
        port = free_port() if isinstance(original, ServeConfig) else None
        if port is not None:
            # Requests in flight are those of the person who ends the program.
            fields |= {"port": port, "drainSeconds": 0}
        local = CONFIG_ADAPTER.validate_python(fields)
        config = folder / f"{own}.json"
        config.write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")
        environment = {
            each["name"]: each.get("value", "")
            for each in container.get("env", ())
            if each["name"] not in (CONFIG_ENV, "HOME")
        }
        environment |= {
            TERMINATION_MESSAGE_ENV: str(message),
            PROGRESS_ENV: str(progress),
            SERVE_HOST_ENV: HOST,
            CUDA_DEVICES_ENV: _visible_devices(container),
        }
        process = self._start(
            Launch(
                pod=name,
                container=container["name"],
                stage=original.stage,
                config=config,
                environment=environment,
                log=self.log_of(name, container["name"]),
                lock=self._root / "locks" / f"{name}.lock",
            )
        )
        digests = (
            {local.digest: original.digest}
            if isinstance(original, StageConfig) and isinstance(local, StageConfig)
            else {}
        )
        running = Running(
            pod=pod,
            container=container,
            is_init=is_init,
            process=process,
            started=self._cluster.now,
            message=message,
            progress=progress,
            digests=digests,
            stage=original.stage,
            port=port,
        )
        self._running[name] = running
        if port is not None:
            pod["metadata"].setdefault("annotations", {})[PORT] = str(port)
        self._report(pod, running, {"running": {"startedAt": at(running.started)}})

    def _mounts(self, pod: Manifest, container: Manifest) -> dict[str, str]:
        """Folders by mount path."""
        volumes = {each["name"]: each for each in pod["spec"].get("volumes", ())}
        return {
            mount["mountPath"]: str(self._folder(pod["metadata"]["name"], volumes[mount["name"]]))
            for mount in container.get("volumeMounts", ())
        }

    def _folder(self, pod: str, volume: Manifest) -> Path:
        """The folder of a volume."""
        own: Path = self._root / "pods" / pod / "volumes" / volume["name"]
        if (claim := volume.get("persistentVolumeClaim")) is not None:
            name: str = claim["claimName"]
            folder: Path = self._volumes.claims.get(name, self._root / "claims" / name)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        own.mkdir(parents=True, exist_ok=True)
        if (source := volume.get("configMap")) is not None:
            _fill(own, self._volumes.configmaps.get(source["name"], {}), source.get("items"))
        elif (source := volume.get("secret")) is not None:
            own.chmod(0o700)
            _fill(own, self._volumes.secrets.get(source["secretName"], {}), source.get("items"))
        return own

    def _observe(self, name: str, running: Running) -> None:
        pod, code = running.pod, running.process.poll()
        is_gone = ("Pod", name) not in self._cluster.objects
        if code is not None:
            del self._running[name]
            if not is_gone:
                self._end(pod, running, code)
            if (_is_of_job(pod) and not running.is_init) or is_gone:
                self._remove_volumes(name)
            return
        if is_gone or "deletionTimestamp" in pod["metadata"]:
            self._terminate(running)
        if running.kill_at is not None and self._cluster.now >= running.kill_at:
            running.process.kill()
        if not is_gone:
            self._read_progress(running)
            if running.port is not None:
                is_ready = running.kill_at is None and self._probe(running.port)
                state = {"running": {"startedAt": at(running.started)}}
                self._report(pod, running, state, is_ready=is_ready)

    def _terminate(self, running: Running) -> None:
        if running.kill_at is None:
            grace = running.pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
            running.kill_at = self._cluster.now + timedelta(seconds=grace)
            running.process.terminate()

    def _read_progress(self, running: Running) -> None:
        with suppress(FileNotFoundError, ValidationError):
            progress = Progress.model_validate_json(running.progress.read_text(encoding="utf-8"))
            stage: Any = running.stage
            self._cluster.progress = RunProgress(stage, progress, running.pod["metadata"]["uid"])

    def _end(self, pod: Manifest, running: Running, code: int) -> None:
        ended: Manifest = {
            "exitCode": int(code),
            "startedAt": at(running.started),
            "finishedAt": at(self._cluster.now),
            "reason": "Completed" if code == 0 else "Error",
            "message": self._message(running),
        }
        if _is_of_job(pod):
            is_last = code != 0 or not running.is_init
            phase = ("Failed" if code else "Succeeded") if is_last else "Running"
            self._report(pod, running, {"terminated": ended}, phase=phase)
        elif running.is_init and code == 0:
            self._report(pod, running, {"terminated": ended})
        else:
            self._crash(pod, running, ended)

    def _crash(self, pod: Manifest, running: Running, ended: Manifest) -> None:
        """Keep the end of an endpoint's container, and start it again later."""
        restarts = int(pod["metadata"].get("annotations", {}).get(RESTARTS, 0))
        restart_at = self._cluster.now + FIRST_RESTART * 2**restarts
        pod["metadata"].setdefault("annotations", {}).update(
            {
                RESTARTS: str(restarts + 1),
                RESTART_AT: restart_at.isoformat(),
            }
        )
        waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
        self._report(pod, running, waiting, restartCount=restarts + 1, lastState={"terminated": ended})

    def _message(self, running: Running) -> str:
        """The termination message. A result names the digest of the Job's config."""
        try:
            text = running.message.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        for local, original in running.digests.items():
            text = text.replace(local, original)
        return text

    def _report(
        self,
        pod: Manifest,
        running: Running,
        state: Manifest,
        *,
        phase: str = "Running",
        is_ready: bool = False,
        **more: Any,
    ) -> None:
        """Write the status of the pod with this state of its container."""
        status = dict(pod["status"])
        kind = "initContainerStatuses" if running.is_init else "containerStatuses"
        name = running.container["name"]
        others = [each for each in status.get(kind, ()) if each["name"] != name]
        status[kind] = [*others, {"name": name, "state": state, "ready": is_ready, **more}]
        old = next((each for each in status.get("conditions", ()) if each["type"] == "Ready"), None)
        ready = {"type": "Ready", "status": "True" if is_ready else "False"}
        if old is None or old["status"] != ready["status"]:
            old = {**ready, "lastTransitionTime": at(self._cluster.now)}
        scheduled = {"type": "PodScheduled", "status": "True"}
        status |= {"phase": phase, "podIP": HOST, "conditions": [scheduled, old]}
        self._cluster.set_status("Pod", pod["metadata"]["name"], status)

    def _disrupt(self, pod: Manifest, message: str) -> None:
        """End the status of a pod as Kubernetes does when a node shuts down."""
        status = dict(pod["status"])
        finished = at(self._cluster.now)
        for kind in ("initContainerStatuses", "containerStatuses"):
            status[kind] = [_interrupted(each, finished) for each in status.get(kind, ())]
        disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
        conditions = [*status.get("conditions", ()), disrupted]
        status |= {"phase": "Failed", "message": message, "conditions": conditions}
        self._cluster.set_status("Pod", pod["metadata"]["name"], status)

    def _remove_volumes(self, pod: str) -> None:
        """Remove the volumes of an ended pod: its copies of Secrets, and its temporary files."""
        shutil.rmtree(self._root / "pods" / pod / "volumes", ignore_errors=True)


def _is_of_job(pod: Manifest) -> bool:
    return bool(pod["metadata"]["ownerReferences"][0]["kind"] == "Job")


def _config_text(container: Manifest) -> str:
    return next(str(each["value"]) for each in container["env"] if each["name"] == CONFIG_ENV)


def _interrupted(status: Manifest, finished: str) -> Manifest:
    running = status.get("state", {}).get("running")
    if running is None:
        return status
    ended = {"exitCode": KILLED, "finishedAt": finished, "reason": "Error", "message": "", **running}
    return {**status, "ready": False, "state": {"terminated": ended}}


def _visible_devices(container: Manifest) -> str:
    """Value of `CUDA_DEVICES_ENV`: as many devices as the container requests."""
    requested = int(container.get("resources", {}).get("limits", {}).get(CUDA, 0))
    visible = os.environ.get(CUDA_DEVICES_ENV)
    names = visible.split(",") if visible else [str(index) for index in range(requested)]
    return ",".join(names[:requested])


def _fill(target: Path, content: Content, items: list[Manifest] | None) -> None:
    """Write the keys of a ConfigMap or Secret as files. A missing one leaves the folder empty."""
    paths = {key: key for key in content} if items is None else {each["key"]: each["path"] for each in items}
    for key, value in content.items():
        if key in paths:
            path = target / paths[key]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value if isinstance(value, bytes) else value.read_bytes())
