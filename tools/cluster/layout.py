# SPDX-License-Identifier: Apache-2.0
"""Files, names and addresses of a cluster on this machine."""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import cache_directory
from tools.cluster.errors import ClusterError

ISOLATED: Final = "ISOLATED_CLUSTER"
"""Environment variable in the namespaces of isolation.py: name of the cluster there."""
SECOND: Final = "second"
"""Default name of the cluster there."""
DEFAULT_NAME: Final = os.environ.get(ISOLATED, "finetune")
POD_NETWORK: Final = IPv4Network("10.244.0.0/24")
SERVICE_NETWORK: Final = IPv4Network("10.96.0.0/16")
LOOPBACK: Final = IPv4Address("127.0.0.1")
NODE_ADDRESS: Final = POD_NETWORK[1]
KUBERNETES_ADDRESS: Final = SERVICE_NETWORK[1]
DNS_ADDRESS: Final = SERVICE_NETWORK[10]

# The bridge has the name <name>0, and the kernel allows 15 characters.
_NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,12}[a-z0-9])?")
# The kernel allows 107 characters in the path of a socket.
_SOCKET_PATH_LIMIT: Final = 107


@dataclass(frozen=True)
class Layout:
    """The files of one cluster, all below `state` except the record of changes to the host."""

    name: str
    state: Path

    @classmethod
    def of(cls, name: str) -> "Layout":
        """The layout of the cluster `name` in the user's cache.

        Raises:
            ClusterError: the name is not valid, or the path of the cache is too long for a socket.
        """
        if not _NAME.fullmatch(name):
            raise ClusterError(
                f"--name {name!r}: use 1 to 14 lower-case letters, digits and hyphens, starting with a letter"
            )
        layout = cls(name, cache_directory().absolute() / "cluster" / name)
        if len(str(layout.containerd_socket)) > _SOCKET_PATH_LIMIT:
            raise ClusterError(
                f"{layout.containerd_socket} is too long for a socket: set XDG_CACHE_HOME to a shorter path"
            )
        return layout

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator; `down` and `up` do not change its path."""
        return self.state / "kubeconfig"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def audit_log(self) -> Path:
        """Audit log of the API server at level Metadata: one JSON event per line."""
        return self.log / "audit.log"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def config(self) -> Path:
        return self.state / "config"

    @property
    def registries(self) -> Path:
        """Settings of the node for registries: a file HOST:PORT/hosts.toml for each one that needs some."""
        return self.config / "registries"

    @property
    def clients(self) -> Path:
        """Folder with one kubeconfig per named user."""
        return self.state / "clients"

    @property
    def etcd(self) -> Path:
        return self.state / "etcd"

    @property
    def etcd_snapshot(self) -> Path:
        """Copy of etcd's data; exists after `save`."""
        return self.state / "etcd.snapshot"

    @property
    def volumes(self) -> Path:
        """Data of the volumes that the StorageClass `local` provides."""
        return self.state / "volumes"

    @property
    def kubelet(self) -> Path:
        """The kubelet's folder with pod volumes, bound to its usual path."""
        return self.state / "kubelet"

    @property
    def containerd_root(self) -> Path:
        """The image store, which `down` keeps, like the logs."""
        return self.state / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def host_record(self) -> Path:
        """Record of a node's changes to the host, so that `down` can undo them even if `state` is lost."""
        return Path(f"/run/finetune-operator-{self.name}.json")

    @property
    def node_name(self) -> str:
        return f"{self.name}-node"

    @property
    def bridge(self) -> str:
        return f"{self.name}0"

    @property
    def cgroup(self) -> str:
        """Parent of all cgroups of this cluster, in every hierarchy."""
        return f"/{self.name}"

    @property
    def pods_cgroup(self) -> str:
        """Cgroup in which the kubelet creates those of pods."""
        return f"{self.cgroup}/kubepods"
