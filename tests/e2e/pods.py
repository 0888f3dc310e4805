# SPDX-License-Identifier: Apache-2.0
"""Pods of the tests: one with access to the claims, one that holds GPUs, one that kills processes."""

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from finetune_client.backend import Object
from tests.e2e.team import Team
from tools.models import tiny

RESTRICTED: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
USER: Final = 65532

KILL: Final = """\
import os, pathlib, signal, sys
uid = sys.argv[1]
spellings = (uid, uid.replace("-", "_"))
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        groups, command = (process / "cgroup").read_text(), (process / "cmdline").read_bytes()
    except OSError:
        continue
    if any(spelling in groups for spelling in spellings) and b"finetune_trainer" in command:
        os.kill(int(process.name), signal.SIGKILL)
        print("killed", process.name)
"""


@dataclass(frozen=True)
class Keeper:
    """A pod that mounts the store at /store and the base models at /models."""

    team: Team
    name: str = "keeper"

    def run(self, command: str) -> str:
        """Output of a shell command in the pod."""
        return self.team.kubectl("exec", self.name, "--", "sh", "-euc", command)

    def copy(self, source: Path, target: str) -> None:
        """Copy a folder of this machine into a folder of the pod."""
        command = self.team.access.kubectl_command(
            "exec", "-i", self.name, f"--namespace={self.team.namespace}", "--",
            "sh", "-euc", f"mkdir -p {target} && tar -x -C {target}",
        )  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            with (
                cast("IO[bytes]", process.stdin) as stream,
                tarfile.open(fileobj=stream, mode="w|") as archive,
            ):
                archive.add(source, arcname=".")
            assert process.wait() == 0, f"{source} was not copied to {target}"


def keep_model(team: Team, image: str) -> Keeper:
    """Start a keeper in a namespace with both claims, and copy the tiny model to `models`."""
    team.apply(keeper(image))
    team.kubectl("wait", "--for=condition=Ready", "pod/keeper", "--timeout=120s")
    found = Keeper(team)
    found.copy(tiny(), "/models/tiny")
    return found


def keeper(image: str) -> Object:
    claims = {"artifacts": "/store", "models": "/models"}
    return _sleeping(
        "keeper",
        image,
        {
            "securityContext": RESTRICTED,
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in claims.items()],
        },
        volumes=[{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims],
    )


def writer(name: str, claim: str, image: str) -> Object:
    """A pod that mounts a claim at /claim."""
    return _sleeping(
        name,
        image,
        {
            "securityContext": RESTRICTED,
            "volumeMounts": [{"name": "claim", "mountPath": "/claim"}],
        },
        volumes=[{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
    )


def holder_of(resource: str, count: int, image: str) -> Object:
    """A pod that holds devices and does nothing."""
    return _sleeping(
        "holder",
        image,
        {
            "securityContext": RESTRICTED,
            "resources": {"limits": {resource: str(count)}},
        },
    )


def killer(image: str) -> Object:
    """A pod that can kill the node's processes; a team's namespace does not admit it."""
    pod = _sleeping("killer", image, {"securityContext": {"runAsUser": 0}})
    pod["spec"]["hostPID"] = True
    pod["spec"]["securityContext"] = {"runAsUser": 0}
    return pod


def _sleeping(name: str, image: str, container: Object, **spec: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{"name": name, "image": image, "command": ["sleep", "infinity"], **container}],
            **spec,
        },
    }
