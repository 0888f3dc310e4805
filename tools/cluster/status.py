# SPDX-License-Identifier: Apache-2.0
"""Output of the command `status`."""

from tools.cluster.control_plane import ControlPlane
from tools.cluster.processes import Processes, resident_bytes

_MEBIBYTE = 1 << 20


def report(cluster: ControlPlane) -> None:
    """Print every process with its memory, then the nodes and pods."""
    processes = Processes(cluster.layout.run, cluster.layout.log)
    names = processes.names()
    if not names:
        print(f"The cluster {cluster.layout.name} does not run.")
        return
    for name in names:
        pid = processes.pid(name)
        if pid is None:
            print(f"{name:<24} has ended; see {processes.log_file(name)}")
        else:
            print(f"{name:<24} pid {pid:<8} {resident_bytes(pid) // _MEBIBYTE:>5} MiB")
    if processes.pid("kube-apiserver") is not None:
        print(cluster.kubectl.run("get", "nodes,pods", "--all-namespaces", "--output=wide"), end="")
