# SPDX-License-Identifier: Apache-2.0
"""Copy the base model to a claim in the demo's namespace, once."""

import contextlib
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Final, cast

import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tools.bootstrap.uv import ROOT
from tools.demo.access import Access, Object
from tools.demo.errors import DemoError
from tools.demo.namespace import NAMESPACE

FOLDER: Final = "gemma-3-270m"
CLAIM: Final = "models"
COPIED: Final = "demo.finetune.dev/copied"
"""Annotation of the claim: the version of the model that was copied completely."""
POD: Final = "copy-base-model"
CHUNK_BYTES: Final = 1 << 20

RECEIVE: Final = (
    f"rm -rf /models/{FOLDER} /models/incoming && mkdir /models/incoming && tar -x -C /models/incoming"
    f" && mv /models/incoming /models/{FOLDER}"
)


def copy_model(access: Access, image: str, console: Console) -> bool:
    """Copy the model to the claim unless it is there; returns whether it was copied.

    Raises:
        DemoError: the pod did not start, or the copy failed.
    """
    source = _folder()
    scope = f"--namespace={NAMESPACE}"
    annotation = ".metadata.annotations." + COPIED.replace(".", r"\.")
    present = access.kubectl("get", f"pvc/{CLAIM}", scope, f"--output=jsonpath={{{annotation}}}")
    if present == source.name:
        return False
    access.kubectl("delete", f"pod/{POD}", scope, "--ignore-not-found", "--now")
    access.kubectl("create", "--filename=-", text=yaml.safe_dump(_pod(image)))
    try:
        access.kubectl("wait", "--for=condition=Ready", f"pod/{POD}", scope, "--timeout=180s")
        _send(access, source, console)
        access.kubectl("annotate", "--overwrite", f"pvc/{CLAIM}", scope, f"{COPIED}={source.name}")
    except DemoError as error:
        raise DemoError(
            f"the copy of the base model failed: {error}",
            [f"kubectl describe pod/{POD} pvc/{CLAIM} -n {NAMESPACE}"],
        ) from error
    finally:
        access.kubectl("delete", f"pod/{POD}", scope, "--ignore-not-found", "--now")
    return True


def _folder() -> Path:
    """Folder of the model on this machine; built in a process of its own, which takes gigabytes of memory."""
    command = [sys.executable, "-m", "tools.models", "gemma"]
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # also those of transformers
    result = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if result.returncode:
        raise DemoError("the base model could not be built", [shlex.join(["python", *command[1:]])])
    return Path(result.stdout.strip())


def _send(access: Access, source: Path, console: Console) -> None:
    """Stream the folder as a tar archive into the pod, which renames it when it is complete."""
    files = sorted(path for path in source.iterdir() if path.is_file())
    total = sum(path.stat().st_size for path in files)
    command = access.kubectl_command("exec", "-i", POD, f"--namespace={NAMESPACE}", "--", "sh", "-c", RECEIVE)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors) as process,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(f"   copying {FOLDER}", total=total)
        # If the pod stops reading, its error output has the reason.
        with (
            contextlib.suppress(BrokenPipeError),
            cast("IO[bytes]", process.stdin) as stream,
            tarfile.open(fileobj=stream, mode="w|", bufsize=CHUNK_BYTES) as archive,
        ):
            for path in files:
                member = tarfile.TarInfo(path.name)
                member.size = path.stat().st_size
                with path.open("rb") as content:
                    archive.addfile(member, progress.wrap_file(content, task_id=task))
        if process.wait():
            errors.seek(0)
            raise DemoError(errors.read().decode().strip() or "kubectl exec ended early")


def _pod(image: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "copy",
                    "image": image,
                    "command": ["sleep", "3600"],
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "64Mi"},
                        # The page cache of written files counts too; the kernel frees it under pressure.
                        "limits": {"memory": "512Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                }
            ],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}}],
        },
    }
