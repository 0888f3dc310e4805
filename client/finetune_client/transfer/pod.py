# SPDX-License-Identifier: Apache-2.0
"""The pod through which files reach a claim: made for one transfer, and removed at its end.

It is admitted by the Pod Security level `restricted`, holds no API token and requests little. A pod that a
killed program left is removed by the next transfer of the same user on the same machine, and stops at its
deadline.
"""

import os
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from finetune_client.access import Access, grant
from finetune_client.backend import Object
from finetune_client.cluster import ClusterBackend
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.transfer.files import ProcessFiles, server_command
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.labels import MANAGED_BY, SELECTOR
from finetune_operator.api.meta import GROUP
from finetune_operator.manifests.labels import RUNNER, short_hash
from finetune_operator.manifests.pod_entries import apply_pod_entries
from finetune_operator.manifests.pod_security import container_security, pod_security
from finetune_operator.observe.pod_startup import STARTING, container_trouble, scheduling_advice
from finetune_operator.observe.pod_status import condition, has_ended
from finetune_operator.stage_table import pod_names
from finetune_trainer.contract.environment import STORE_MOUNT

PROGRAM: Final = "finetune"
"""Value of the label `managed-by`."""
TRANSFER: Final = f"{GROUP}/transfer"
"""Label of a pod: hash of the user and machine that it works for."""
PROCESS: Final = f"{GROUP}/transfer-process"
"""Annotation of a pod: id of the process that it works for."""
CONTAINER: Final = "transfer"
DEADLINE_SECONDS: Final = 6 * 3600
START_SECONDS: Final = 300.0
POLL_SECONDS: Final = 0.5
TRANSIENT: Final = STARTING | {"ErrImagePull"}
"""Reasons of a waiting container that another attempt of the kubelet may end."""
POD_RIGHTS: Final = (
    ("create", "pods", ""),
    ("get", "pods", ""),
    ("delete", "pods", ""),
    ("create", "pods", "exec"),
)
"""Verb, resource and subresource of what a transfer does with its pod."""

IMAGE_COMMAND: Final = (
    "kubectl get deployments --all-namespaces --selector=app.kubernetes.io/name=finetune-operator"
    """ --output=jsonpath='{..env[?(@.name=="TRAINER_IMAGE")].value}'"""
)

Report = Callable[[str], None]
"""Shows a sentence to the user."""


def user_hash() -> str:
    """Hash of the user and the machine, by which a leftover is recognized."""
    return short_hash(str(os.getuid()), socket.gethostname(), length=16)


def build_pod(
    *,
    claim: str,
    image: str,
    account: str,
    profile: ComputeProfile | None,
    writes: bool,
    owner: str,
    process: int,
) -> Object:
    """The pod of one transfer.

    Args:
        claim: name of the PersistentVolumeClaim, mounted at STORE_MOUNT.
        image: an image with Python.
        account: service account, whose pull secrets the pod gets.
        profile: ComputeProfile whose entries for `prepare` place the pod.
        writes: whether it may write to the claim.
        owner: `user_hash` of the user.
        process: id of the user's process.
    """
    labels = {MANAGED_BY: PROGRAM, TRANSFER: owner}
    read_only = {} if writes else {"readOnly": True}
    template = {
        "metadata": {"labels": labels, "annotations": {PROCESS: str(process)}},
        "spec": {
            **pod_security(account),
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            # `sleep` ends on no signal, and nothing needs to be saved.
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": CONTAINER,
                    "image": image,
                    # The nodes have the image of runs, perhaps from no registry.
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", str(DEADLINE_SECONDS)],
                    "env": [],
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "64Mi"},
                        "limits": {"cpu": "1", "memory": "256Mi"},
                    },
                    "securityContext": container_security(),
                    "volumeMounts": [{"name": "store", "mountPath": STORE_MOUNT, **read_only}],
                }
            ],
            "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": claim, **read_only}}],
        },
    }
    shaped = apply_pod_entries(template, profile, pod_names("prepare"), labels)
    shaped["metadata"]["generateName"] = "finetune-transfer-"
    return {"apiVersion": "v1", "kind": "Pod", **shaped}


@contextmanager
def claim_files(
    backend: ClusterBackend,
    claim: str,
    *,
    image: str | None,
    profile: ComputeProfile | None,
    writes: bool,
    report: Report,
    start_seconds: float = START_SECONDS,
) -> Iterator[ProcessFiles]:
    """Files of a claim, through a pod that exists during the block.

    Args:
        backend: the namespace.
        claim: name of the PersistentVolumeClaim.
        image: image of the pod; None for the trainer image that the namespace knows.
        profile: the default ComputeProfile, if there is one.
        writes: whether files are written.
        report: called with a sentence when something takes long.
        start_seconds: time until the pod must be ready.

    Raises:
        OperationError: a right is missing, the claim does not exist, or the pod is refused or does not start.
    """
    access, namespace = backend.access, backend.namespace
    check_rights(access, namespace, POD_RIGHTS, "a transfer from or to a claim")
    _check_claim(backend, claim)
    _remove_leftovers(backend, report)
    pod = build_pod(
        claim=claim,
        image=image or find_image(backend, profile),
        account=RUNNER if backend.get("ServiceAccount", RUNNER) is not None else "default",
        profile=profile,
        writes=writes,
        owner=user_hash(),
        process=os.getpid(),
    )
    # With a name of ours, the pod can be removed if the answer to its creation never arrives.
    name = pod["metadata"]["name"] = pod["metadata"].pop("generateName") + secrets.token_hex(5)
    with _terminable():
        try:
            backend.create(pod)
        except KeyboardInterrupt:
            if backend.get("Pod", name) is not None:
                _remove(backend, name, report)
            raise
        except OperationError as error:
            raise OperationError(
                f"the pod that reads and writes claim {claim} is refused: {error}", error.commands
            ) from error
        try:
            _wait_until_ready(backend, name, claim, report, start_seconds)
            files = ProcessFiles(exec_command(access, namespace, name))
            try:
                yield files
            finally:
                files.close()
        finally:
            _remove(backend, name, report)


def _remove(backend: ClusterBackend, pod: str, report: Report) -> None:
    """Remove a pod. A failure must not hide that of the transfer."""
    try:
        backend.delete("Pod", pod)
    except OperationError as error:
        report(
            f"pod {pod} was not removed ({error}); it stops within {DEADLINE_SECONDS // 3600} hours:"
            f" kubectl delete pod {pod} --namespace={backend.namespace}"
        )


def exec_command(access: Access, namespace: str, pod: str) -> list[str]:
    """Command that serves the files of the mounted claim by `kubectl exec`.

    Raises:
        OperationError: kubectl is not installed.
    """
    command = access.kubectl_command(
        "exec", "--stdin", f"--namespace={namespace}", f"--container={CONTAINER}", pod, "--",
        *server_command(STORE_MOUNT),
    )  # fmt: skip
    if shutil.which(command[0]) is None:
        raise OperationError(
            f"{command[0]} is not on PATH, and a claim is reached through it: install kubectl"
        )
    return command


def check_rights(
    access: Access, namespace: str, rights: Sequence[tuple[str, str, str]], purpose: str
) -> None:
    """Ask before anything exists that could then not be used or removed.

    Args:
        access: requests to the API server.
        namespace: the namespace.
        rights: verb, resource and subresource of each; the role edit has them all.
        purpose: what needs them, for the message.

    Raises:
        OperationError: the user lacks a right; the message names it and the role.
    """
    for verb, resource, subresource in rights:
        attributes = {"namespace": namespace, "verb": verb, "resource": resource, "subresource": subresource}
        review = access.request(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            body={
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            },
        )
        if review is None or not review["status"].get("allowed"):
            right = f"{verb} {resource}" + (f"/{subresource}" if subresource else "")
            raise OperationError(
                f"you may not {right} in namespace {namespace}, which {purpose} needs:"
                " the role edit has this right (docs/tenants.md)",
                grant("edit", "USER", namespace),
            )


def _check_claim(backend: ClusterBackend, name: str) -> None:
    claim = backend.get("PersistentVolumeClaim", name)
    if claim is None:
        raise OperationError(
            f"PersistentVolumeClaim {name} does not exist in namespace {backend.namespace}: create it, or"
            " name another one with --to",
            [f"kubectl get pvc --namespace={backend.namespace}"],
        )
    if claim.get("status", {}).get("phase") == "Lost":
        raise OperationError(
            f"PersistentVolumeClaim {name} has lost its volume: restore the volume, or create the claim anew",
            [f"kubectl describe pvc {name} --namespace={backend.namespace}"],
        )


def _remove_leftovers(backend: ClusterBackend, report: Report) -> None:
    """Remove pods of this user on this machine whose process has ended, and those past their deadline."""
    for pod in backend.access.objects(
        "Pod", backend.namespace, f"{MANAGED_BY}={PROGRAM},{TRANSFER}={user_hash()}"
    ):
        process = pod["metadata"].get("annotations", {}).get(PROCESS, "")
        if has_ended(pod) or not (process.isdigit() and _is_running(int(process))):
            _remove(backend, pod["metadata"]["name"], report)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def find_image(backend: ClusterBackend, profile: ComputeProfile | None) -> str:
    """The trainer image that the nodes of the namespace already have.

    The profile names it, or a run, an Evaluation, a Checkpoint or a pod of the operator has it.

    Raises:
        OperationError: nothing in the namespace has it yet.
    """
    if profile is not None and profile.spec.images.trainer:
        return profile.spec.images.trainer
    found: dict[str, str] = {}
    for kind in ("FineTuneJob", "Evaluation"):
        for each in backend.objects(kind):
            image = each.get("status", {}).get("resolved", {}).get("trainerImage")
            if image:
                found[each["metadata"]["creationTimestamp"]] = image
    if not found:
        for each in backend.objects("Checkpoint"):
            found[each["metadata"]["creationTimestamp"]] = each["spec"]["lineage"]["trainerImage"]
    if not found:
        for pod in backend.access.pods(backend.namespace, SELECTOR):
            container = pod["spec"]["containers"][0]
            found[pod["metadata"]["creationTimestamp"]] = container["image"]
    if found:
        return found[max(found)]
    raise OperationError(
        f"nothing in namespace {backend.namespace} has used the trainer image yet, so its name is not known:"
        " give it, or another image with Python, as --image",
        ["an administrator of the operator sees its name:", IMAGE_COMMAND],
    )


def _wait_until_ready(
    backend: ClusterBackend, name: str, claim: str, report: Report, start_seconds: float
) -> None:
    """Wait until the pod runs.

    Raises:
        OperationError: it cannot start, or did not in time.
    """
    end = time.monotonic() + start_seconds
    shown = ""
    while True:
        pod = backend.get("Pod", name)
        if pod is None:
            raise OperationError(f"pod {name} was deleted before it ran: start the transfer again")
        ready = condition(pod, "Ready")
        if ready is not None and ready["status"] == "True":
            return
        problem, is_final = start_problem(pod, claim)
        if has_ended(pod):
            problem, is_final = pod["status"].get("message") or "its container ended", True
        if is_final or time.monotonic() >= end:
            raise OperationError(
                f"the pod that reads and writes claim {claim} does not start: {problem}",
                details=_events(backend, name),
                exit_code=ProgramExit.FAILED if is_final else ProgramExit.TIMED_OUT,
            )
        if problem != shown:
            report(f"waiting for pod {name}: {problem}")
            shown = problem
        time.sleep(POLL_SECONDS)


def start_problem(pod: Object, claim: str) -> tuple[str, bool]:
    """Why a pod does not run yet, and whether waiting is pointless."""
    statuses = pod["status"].get("containerStatuses") or ()
    waiting: Mapping[str, str] = statuses[0].get("state", {}).get("waiting", {}) if statuses else {}
    image = pod["spec"]["containers"][0]["image"]
    trouble = container_trouble(pod, "the pod", image, dict(waiting))
    if trouble is not None:
        return trouble.message, waiting.get("reason") not in TRANSIENT
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        message = scheduled.get("message", "")
        return f"{message} ({scheduling_advice(pod, message)})", False
    return f"the node pulls its image or mounts claim {claim}", False


def _events(backend: ClusterBackend, pod: str) -> list[str]:
    """Warnings about a pod, such as a volume that cannot be attached."""
    found = backend.access.objects("Event", backend.namespace, fields={"involvedObject.name": pod})
    return sorted({f"{each['reason']}: {each['message']}" for each in found if each["type"] == "Warning"})


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that the pod is removed."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only.
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
