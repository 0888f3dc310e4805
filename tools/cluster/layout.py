# SPDX-License-Identifier: Apache-2.0
"""Files, names, addresses, ports, lock and configuration templates of a cluster on this machine."""

import fcntl
import json
import logging
import os
import random
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from string import Template
from tempfile import gettempdir
from typing import IO, Final

from tools.bootstrap.uv import cache_directory
from tools.cluster.commands import ClusterError

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


LOG: Final = logging.getLogger(__name__)


@contextmanager
def exclusive(layout: Layout) -> Iterator[None]:
    """Hold the lock of the cluster's state; waits for a command that holds it."""
    while True:
        layout.state.mkdir(parents=True, exist_ok=True)
        path = layout.state / "lock"
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                LOG.info("Waiting for another command on the cluster %s", layout.name)
                fcntl.flock(lock, fcntl.LOCK_EX)
            # A purge may have removed the lock file during the wait.
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield
                return


# Below the kernel's range for outgoing connections, which might take a port before its server listens.
_CANDIDATES: Final = range(20000, 32000)


def choose_ports(names: Sequence[str], fixed: Mapping[str, int], record: Path) -> dict[str, int]:
    """Choose free ports for `names` that have no `fixed` one; write all ports to `record` and return them.

    Raises:
        ClusterError: there are too few free ports.
    """
    ports = {name: free_port() for name in names if name not in fixed} | dict(fixed)
    record.write_text(json.dumps(ports))
    return ports


def free_port() -> int:
    """Reserve a port that no process listens on; no other caller gets it until this process ends.

    Raises:
        ClusterError: no port is free.
    """
    for port in random.SystemRandom().sample(_CANDIDATES, len(_CANDIDATES)):
        if (reservation := _reserve(port)) is not None:
            _RESERVATIONS.append(reservation)
            return port
    raise ClusterError(f"no port is free on {LOOPBACK}: stop programs that listen there")


_RESERVATIONS: Final[list[IO[str]]] = []
"""Locked files of the ports that this process has chosen. Their listeners may start later, or again."""


def _reserve(port: int) -> IO[str] | None:
    """The locked file of the port; None if another caller has reserved it or a process listens on it."""
    folder = Path(gettempdir()) / f"finetune-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = (folder / str(port)).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            probe.bind((str(LOOPBACK), port))
    except OSError:
        file.close()
        return None
    return file


_FOLDER: Final = Path(__file__).parent / "templates"


def render(template: str, **values: object) -> str:
    """The text of templates/<template> with every `${name}` replaced.

    Raises:
        KeyError: a value of the template is missing.
    """
    return Template((_FOLDER / template).read_text()).substitute(values)
