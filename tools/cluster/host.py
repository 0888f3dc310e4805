# SPDX-License-Identifier: Apache-2.0
"""Change the host's settings and folders for a node, and restore them afterwards."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tools.cluster.commands import ClusterError, succeeds
from tools.cluster.toolchain import system_program

_SYSCTL: Final = Path("/proc/sys")
# The kubelet, the CNI plugins and this module set these.
_SETTINGS: Final = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/netfilter/nf_conntrack_max",
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
# A pod reaches Services with pods on its own bridge only if bridged packets pass the address translation.
_BRIDGE_FILTER: Final = "net/bridge/bridge-nf-call-iptables"
_REQUIRED: Final = {"net/ipv4/ip_forward": "1", _BRIDGE_FILTER: "1"}


@dataclass(frozen=True)
class Host:
    """The host's original state.

    Attributes:
        settings: original values of the changed kernel settings.
        folders: created folders.
        network: network namespace of the settings; None in records of older versions.
    """

    settings: dict[str, str]
    folders: list[str]
    network: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether this process is in the network namespace of the settings."""
        return self.network in {None, _own_network()}

    @classmethod
    def prepare(cls, folders: list[Path], record: Path) -> "Host":
        """Record the host's settings, set those that a node needs, and create the missing `folders`.

        Raises:
            ClusterError: the user is not root, or the kernel lacks a module.
        """
        if os.geteuid() != 0:
            raise ClusterError(
                "a node needs root for containers and their network: run this as root, "
                "or without a node (--control-plane-only)"
            )
        if not (_SYSCTL / _BRIDGE_FILTER).exists() and not succeeds(
            [system_program("modprobe", "kmod"), "br_netfilter"]
        ):
            raise ClusterError("this kernel has no module br_netfilter, which Services on the node need")
        host = cls(
            settings={
                name: (_SYSCTL / name).read_text().strip() for name in _SETTINGS if (_SYSCTL / name).exists()
            },
            folders=[str(folder) for folder in folders if not folder.exists()],
            network=_own_network(),
        )
        # Written atomically: an incomplete record could not be used to restore.
        unfinished = record.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(host)))
        unfinished.rename(record)
        for name, value in _REQUIRED.items():
            (_SYSCTL / name).write_text(value)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        return host

    @classmethod
    def read(cls, record: Path) -> "Host":
        return cls(**json.loads(record.read_text()))

    def restore(self) -> None:
        """Undo the changes of `prepare`, the kubelet and the CNI plugins.

        Network settings of another namespace are skipped: they disappeared with it.
        """
        for name, value in self.settings.items():
            if name.startswith("net/") and not self.is_here:
                continue
            if (_SYSCTL / name).read_text().strip() != value:
                (_SYSCTL / name).write_text(value)
        for folder in reversed(self.folders):
            path = Path(folder)
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _own_network() -> str:
    return str(Path("/proc/self/ns/net").readlink())
