# SPDX-License-Identifier: Apache-2.0
"""A private mount namespace in which the hard-coded paths of containerd and the kubelet are our own folders.

It contains all overlay, tmpfs and network namespace mounts, which disappear with its last process.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tools.cluster.commands import run
from tools.cluster.processes import Processes
from tools.cluster.toolchain import system_program
from tools.cluster.waiting import until

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
