# SPDX-License-Identifier: Apache-2.0
"""Install the operator with its Helm chart, and copy the base model to a claim, once."""

import contextlib
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any, Final, cast

import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from finetune_client.access import Access
from finetune_client.backend import Object
from finetune_client.errors import OperationError
from finetune_operator.api.meta import GROUP
from tools.bootstrap.uv import ROOT
from tools.demo.admin_access import NAMESPACE, AdminAccess
from tools.images.build import build
from tools.images.tags import References, Variant

RELEASE: Final = "finetune-operator"
SYSTEM: Final = "finetune-system"
CRD: Final = f"finetunejobs.{GROUP}"
CHART: Final = ROOT / "charts" / "finetune-operator"
DEFINITIONS: Final = "finetune-operator-crds"
"""Release and chart of the CustomResourceDefinitions."""

PROFILE: Final[dict[str, Any]] = {
    # Without an accelerator a device is a CPU core; the requests fit a machine with two cores.
    "accelerator": {"resource": "cpu", "maxPerPod": 2},
    "pods": [
        {"stages": ["prepare"], "resources": {"cpu": "50m", "memory": "256Mi"}},
        {"stages": ["preflight"], "resources": {"cpu": "200m", "memory": "3Gi"}},
        # The endpoint gets as much processor time as a stage. Two of these pods fit a machine with two cores.
        {"stages": ["train"], "resources": {"cpu": "750m", "memory": "6Gi"}},
        {"stages": ["evaluate"], "resources": {"cpu": "750m", "memory": "4Gi"}},
        {"stages": ["serve"], "resources": {"cpu": "750m", "memory": "3Gi"}},
    ],
    "serving": {"engine": "Transformers"},
    "store": {"uri": "pvc://artifacts", "accessMode": "ReadWriteOnce"},
}
TWO_THREADS: Final[dict[str, Any]] = {
    "stages": ["train", "evaluate"],
    "env": [{"name": "OMP_NUM_THREADS", "value": "2"}],
}
"""One more entry of the demo's profile. By the CPU request, a stage would have one thread, but the second
core is idle while no one uses the endpoint."""


def images() -> References:
    """Build the images of the present sources unless `make images` has built them."""
    return build(Variant.CPU).names


def values(refs: References, **others: object) -> str:
    """The chart's values as YAML; `others`: in addition to those of the demo."""
    return yaml.safe_dump(
        {
            "image": _image(refs.operator),
            "trainerImage": _image(refs.trainer),
            "defaultProfile": {"spec": PROFILE},
            **others,
        }
    )


def install(access: AdminAccess, refs: References, **others: object) -> None:
    """Install or upgrade the definitions and the operator, and wait until it is ready.

    `others`: values in addition to those of the demo.

    Raises:
        OperationError: Helm failed; the message contains Helm's message.
    """
    install_definitions(access)
    install_operator(access, refs, CHART, **others)


def install_definitions(access: AdminAccess) -> None:
    """Install or upgrade the definitions. Those that kubectl made join the release.

    Raises:
        OperationError: Helm failed, or is older than 3.17.
    """
    # Helm 3 overwrites fields that another tool set without this option.
    is_helm3 = access.helm("version", "--template={{.Version}}").startswith("v3.")
    access.helm(
        "upgrade", "--install", DEFINITIONS, str(CHART.with_name(DEFINITIONS)), f"--namespace={SYSTEM}",
        "--create-namespace", "--take-ownership", *(() if is_helm3 else ("--force-conflicts",)),
    )  # fmt: skip


def install_operator(access: AdminAccess, refs: References, chart: Path = CHART, **others: object) -> None:
    """Install or upgrade the operator and wait until it is ready.

    `others`: values in addition to those of the demo.

    Raises:
        OperationError: Helm failed; the message contains Helm's message.
    """
    try:
        access.helm(
            "upgrade", "--install", RELEASE, str(chart), f"--namespace={SYSTEM}", "--create-namespace",
            "--values=-", "--wait", "--timeout=3m", text=values(refs, **others),
        )  # fmt: skip
    except OperationError as error:
        raise OperationError(
            str(error),
            [f"kubectl -n {SYSTEM} describe pods", f"kubectl -n {SYSTEM} logs deployment/{RELEASE}"],
        ) from error


def _image(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}


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
        OperationError: the pod did not start, or the copy failed.
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
    except OperationError as error:
        raise OperationError(
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
        raise OperationError("the base model could not be built", [shlex.join(["python", *command[1:]])])
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
            raise OperationError(errors.read().decode().strip() or "kubectl exec ended early")


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
