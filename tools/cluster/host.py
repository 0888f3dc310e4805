"""What a node needs on the host outside its own folder: settings and folders that are put back afterwards."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tools.cluster.commands import succeeds
from tools.cluster.errors import ClusterError
from tools.cluster.toolchain import system_program

_SYSCTL: Final = Path("/proc/sys")
# The kubelet and the CNI plugins set these, and so do we.
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
# Services answer pods on their own bridge only if bridged packets pass the address translation too.
_BRIDGE_FILTER: Final = "net/bridge/bridge-nf-call-iptables"
_REQUIRED: Final = {"net/ipv4/ip_forward": "1", _BRIDGE_FILTER: "1"}


@dataclass(frozen=True)
class Host:
    """Settings as they were, folders that were made, and the network namespace that the settings are of."""

    settings: dict[str, str]
    folders: list[str]
    network: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether this process is in that namespace; None is what versions recorded that knew only one."""
        return self.network in {None, _own_network()}

    @classmethod
    def prepare(cls, folders: list[Path], record: Path) -> "Host":
        """Record the host's settings, then set those that a node needs and make the missing `folders`.

        Raises:
            ClusterError: not root, or the kernel lacks a module.
        """
        if os.geteuid() != 0:
            raise ClusterError(
                "a node needs root, for containers and their network: run this as root, "
                "or without a node (--control-plane-only)"
            )
        if not (_SYSCTL / _BRIDGE_FILTER).exists() and not succeeds(
            [system_program("modprobe", "kmod"), "br_netfilter"]
        ):
            raise ClusterError("this kernel has no br_netfilter: the node's services cannot work without it")
        host = cls(
            settings={
                name: (_SYSCTL / name).read_text().strip() for name in _SETTINGS if (_SYSCTL / name).exists()
            },
            folders=[str(folder) for folder in folders if not folder.exists()],
            network=_own_network(),
        )
        # Renamed into place: half a record would leave nothing to restore from.
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
        """Undo `prepare`, and what kubelet and CNI plugins set; another namespace's settings went with it."""
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
