# SPDX-License-Identifier: Apache-2.0
"""Linux namespaces: of mounts for one cluster, and of a second cluster that runs next to the first.

- In the mount namespace of a cluster, the hard-coded paths of containerd and the kubelet are our own folders.
  It contains all overlay, tmpfs and network namespace mounts, which disappear with its last process.
- Addresses, ports, links and packet filters in the namespaces of the second cluster belong to it only, and no
  outside network is reachable: programs and images must already be on this machine. When the first process
  of the namespaces ends, the kernel ends all others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.cluster.commands import run, until
from tools.cluster.layout import ISOLATED, SECOND
from tools.cluster.processes import Processes
from tools.cluster.toolchain import system_program

HOLDER: Final = "mount-namespace"
_READY: Final = "sleep"
COMMAND: Final = (
    "unshare", "--mount", "--propagation", "private",
    "sh", "-c", "mount --make-rshared / && exec sleep infinity",
)  # fmt: skip


def create_mount_namespace(processes: Processes, binds: Mapping[Path, Path]) -> int:
    """Start the process that holds the namespace, and bind folders in it.

    Args:
        processes: the cluster's processes.
        binds: our folder by the existing path on which it is mounted.

    Returns:
        Pid of the process.
    """
    pid = processes.start(HOLDER, COMMAND)
    until("the mount namespace", lambda: _command_name(pid) == _READY, seconds=10)
    for target, ours in binds.items():
        ours.mkdir(parents=True, exist_ok=True)
        run([system_program("nsenter", "util-linux"), "-t", str(pid), "-m", "mount", "--bind", ours, target])
    return pid


def _command_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


# The shell is the first process, which must reap processes whose parents have ended.
_FIRST: Final = 'ip link set lo up && "$@"; exit $?'


def isolated(command: Sequence[str], name: str = SECOND) -> list[str]:
    """Command line that runs `command` as root in its own namespaces, with the same exit status.

    `name` is the local cluster there, for all of tools/ and for the end-to-end tests. It does not run yet;
    the command must start and stop it.
    """
    return [
        system_program("unshare", "util-linux"), "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
        "env", f"{ISOLATED}={name}", "sh", "-c", _FIRST, "sh", *command,
    ]  # fmt: skip
