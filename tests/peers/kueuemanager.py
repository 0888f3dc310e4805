# SPDX-License-Identifier: Apache-2.0
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
from tools.cluster.credentials import Authority
from tools.cluster.processes import WITH_PARENT
from tools.peers.toolchain import KUEUE

EXAMPLES: Final = Path(__file__).parents[2] / "examples" / "kueue"
LOOPBACK: Final = "127.0.0.1"
WEBHOOK_PORT: Final = 9446
HEALTH_PORT: Final = 8093
VISIBILITY_PORT: Final = 8094
NAMESPACE: Final = "kueue-system"
FRAMEWORKS: Final = ("batch/job", "pod", "deployment")
USER: Final = "kueue"
UNSHARED: Final = ("unshare", "--mount", "--propagation", "private")
IN_ROOT: Final = """
folder=$1 root=$1/root
shift
mount -t tmpfs kueue "$root"
for path in /*; do
    if [ -L "$path" ]; then cp -P "$path" "$root$path"; fi
    if [ -d "$path" ] && [ ! -L "$path" ]; then mkdir "$root$path" && mount --rbind "$path" "$root$path"; fi
done
mount -t overlay etc -o "lowerdir=/etc,upperdir=$folder/etc,workdir=$folder/work" "$root/etc"
cp -r "$folder/visibility" "$root/visibility"
exec chroot "$root" "$@"
"""
"""Runs the arguments after a folder in a root with certificates at two paths that Kueue has no setting for.

The root is in a mount namespace of its own, so nothing is left on the machine.
"""
KINDS: Final = (
    "APIService",
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
    _issue(plane, folder / "visibility")
    _issue(plane, folder / "etc" / "kueue" / "metrics" / "certs")
    for made in ("root", "work"):
        (folder / made).mkdir()
    _install(plane, base64.b64encode(Authority(plane.layout.pki).certificate).decode())
    (folder / "config.yaml").write_text(yaml.safe_dump(_configuration(folder, integrations)))
    log = folder / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*WITH_PARENT, *UNSHARED, "sh", "-euc", IN_ROOT, "sh", str(folder), *_command(plane, folder)],
            env={"PATH": os.environ["PATH"]},
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
    bound = {each["roleRef"]["name"] for each in found if each and "roleRef" in each}
    manifests = [each for each in found if each and each["kind"] in KINDS and _is_used(each, bound)]
    for manifest in manifests:
        if "subjects" in manifest:
            # The process is a user and not a pod with Kueue's service account.
            manifest["subjects"] = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}]
        if manifest["kind"] == "APIService":
            manifest["spec"]["service"]["port"] = VISIBILITY_PORT
        for config in _client_configs(manifest):
            service = config.pop("service", None)
            if service is not None:
                config["url"] = f"https://{LOOPBACK}:{WEBHOOK_PORT}{service.get('path', '/')}"
            config["caBundle"] = authority
    plane.kubectl.run("create", "namespace", NAMESPACE)
    plane.kubectl.define(yaml.safe_dump_all([*manifests, _visibility_service()]))


def _is_used(manifest: dict[str, Any], bound: set[str]) -> bool:
    """Whether the manager needs the manifest: most of Kueue's roles are for users."""
    return not manifest["kind"].endswith("Role") or manifest["metadata"]["name"] in bound


def _visibility_service() -> dict[str, Any]:
    """The Service through which the API server reaches the visibility API."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kueue-visibility-server", "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    }


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
        "visibilityServer": {"bindAddress": LOOPBACK, "bindPort": VISIBILITY_PORT},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "clientConnection": {"qps": 500, "burst": 1000},
        "managedJobsNamespaceSelector": {"matchExpressions": [excluded]},
        "integrations": {"frameworks": list(FRAMEWORKS), **integrations},
    }


def _command(plane: ControlPlane, folder: Path) -> list[str]:
    client = f"--kubeconfig={plane.client(USER, administrator=False)}"
    return [str(KUEUE.program("kueue")), f"--config={folder}/config.yaml", client, "--zap-log-level=2"]


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
