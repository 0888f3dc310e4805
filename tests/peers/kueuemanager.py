"""A real Kueue for a control plane or a cluster, as a process of this network namespace."""

import base64
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.pki import Authority
from tools.cluster.processes import WITH_PARENT
from tools.cluster.toolchain import system_program
from tools.peers.toolchain import KUEUE

EXAMPLES: Final = Path(__file__).parents[2] / "examples" / "kueue"
LOOPBACK: Final = "127.0.0.1"
WEBHOOK_PORT: Final = 9446
HEALTH_PORT: Final = 8093
NAMESPACE: Final = "kueue-system"
FRAMEWORKS: Final = ("batch/job", "pod", "deployment")
USER: Final = "kueue"
KINDS: Final = (
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
)
"""Kinds of Kueue's own manifests that are needed by a manager which is not a pod."""
WAIT_SECONDS: Final = 60


@contextmanager
def running_kueue(plane: ControlPlane, folder: Path, integrations: dict[str, Any]) -> Iterator[None]:
    """Install Kueue with its webhooks, and run its manager.

    Args:
        plane: the control plane, or the cluster with a node.
        folder: an empty folder for its files.
        integrations: settings of `integrations` in its configuration, in addition to `frameworks`.
    """
    _issue(plane, folder / "webhook")
    _install(plane, base64.b64encode(Authority(plane.layout.pki).certificate).decode())
    (folder / "config.yaml").write_text(yaml.safe_dump(_configuration(folder, integrations)))
    log = folder / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*WITH_PARENT, "sh", "-c", _with_certificates(plane, folder), "sh", *_command(folder)],
            env={"KUBECONFIG": str(plane.client(USER, administrator=False)), "PATH": os.environ["PATH"]},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            eventually("Kueue is ready", _is_ready, WAIT_SECONDS, log.read_text)
            yield
        finally:
            process.terminate()


def define_queues(plane: ControlPlane, manifests: str) -> None:
    """Apply queues, once the webhooks answer, and wait until their ClusterQueues are active."""

    def applied() -> bool:
        command = ("apply", "--server-side", "--filename=-")
        try:
            plane.kubectl.run(*command, text=manifests)
        except Exception as error:
            if "failed calling webhook" in str(error):
                return False
            raise
        return True

    eventually("the webhooks of Kueue answer", applied, WAIT_SECONDS)
    active = ("wait", "clusterqueue", "--all", "--for=condition=Active", f"--timeout={WAIT_SECONDS}s")
    plane.kubectl.run(*active)


def _install(plane: ControlPlane, authority: str) -> None:
    rendered = plane.kubectl.run("kustomize", str(KUEUE.folder / "config" / "default"))
    rights = (EXAMPLES / "clusterrole.yaml").read_text()
    found = [*yaml.safe_load_all(rendered), *yaml.safe_load_all(rights)]
    manifests = [each for each in found if each and each["kind"] in KINDS]
    for manifest in manifests:
        if "subjects" in manifest:
            # The process is a user and not a pod with Kueue's service account.
            manifest["subjects"] = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}]
        for config in _client_configs(manifest):
            service = config.pop("service", None)
            if service is not None:
                config["url"] = f"https://{LOOPBACK}:{WEBHOOK_PORT}{service.get('path', '/')}"
            config["caBundle"] = authority
    plane.kubectl.run("create", "namespace", NAMESPACE)
    plane.kubectl.define(yaml.safe_dump_all(manifests))


def _client_configs(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (webhook["clientConfig"] for webhook in manifest.get("webhooks", ()))
    conversion = manifest.get("spec", {}).get("conversion", {})
    if "webhook" in conversion:
        yield conversion["webhook"]["clientConfig"]


def _configuration(folder: Path, integrations: dict[str, Any]) -> dict[str, Any]:
    excluded = {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", NAMESPACE],
    }
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"{LOOPBACK}:{HEALTH_PORT}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"port": WEBHOOK_PORT, "host": LOOPBACK, "certDir": str(folder / "webhook")},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "clientConnection": {"qps": 500, "burst": 1000},
        "managedJobsNamespaceSelector": {"matchExpressions": [excluded]},
        "integrations": {"frameworks": list(FRAMEWORKS), **integrations},
    }


def _command(folder: Path) -> list[str]:
    config, gates = f"--config={folder}/config.yaml", "--feature-gates=VisibilityOnDemand=false"
    return [str(KUEUE.program("kueue")), config, gates, "--zap-log-level=2"]


def _with_certificates(plane: ControlPlane, folder: Path) -> str:
    """Shell text that runs its arguments with certificates at the path that Kueue has no setting for.

    /etc of the manager's own mount namespace is an overlay, so nothing is left on the machine.
    """
    upper, work = folder / "upper", folder / "work"
    work.mkdir()
    _issue(plane, upper / "kueue" / "metrics" / "certs")
    overlay = f"lowerdir=/etc,upperdir={upper},workdir={work}"
    unshare = f"{system_program('unshare', 'util-linux')} --mount --propagation private"
    return f'exec {unshare} sh -c \'mount -t overlay etc -o {overlay} /etc && exec "$@"\' sh "$@"'


def _issue(plane: ControlPlane, folder: Path) -> None:
    identity = Authority(plane.layout.pki).issue("kueue-webhook", hosts=(LOOPBACK,))
    folder.mkdir(parents=True)
    (folder / "tls.crt").write_bytes(identity.certificate)
    (folder / "tls.key").write_bytes(identity.key)


def _is_ready() -> bool:
    try:
        return httpx.get(f"http://{LOOPBACK}:{HEALTH_PORT}/readyz", trust_env=False).is_success
    except httpx.TransportError:
        return False
