# SPDX-License-Identifier: Apache-2.0
"""Stop a cluster in any state, and undo its changes to the machine."""

import logging
import shutil
import signal
from typing import Final

from tools.cluster import cgroups, linux_namespaces, network
from tools.cluster.commands import ClusterError, becomes_true
from tools.cluster.containerd import Containerd
from tools.cluster.host import Host
from tools.cluster.layout import Layout
from tools.cluster.processes import Processes, send, start_time

LOG: Final = logging.getLogger(__name__)
# Stopped first with SIGTERM, so that they do not react to the following steps.
_AGENTS: Final = ("kubelet", "kube-proxy", "provisioner")
_KILLED_WITHIN_SECONDS: Final = 10
_NODE: Final = ("containerd", linux_namespaces.HOLDER)


def tear_down(layout: Layout, processes: Processes) -> None:
    """Stop the cluster, and remove everything except its logs and image store.

    Raises:
        ClusterError: something could not be removed; the next call continues there.
    """
    names = processes.names()
    processes.stop([name for name in _AGENTS if name in names], signal.SIGTERM, seconds=5)
    # The data of the control plane is not kept, so SIGKILL is enough.
    control_plane = [name for name in names if name not in (*_AGENTS, *_NODE)]
    processes.stop(control_plane, signal.SIGKILL, seconds=5)
    if layout.host_record.exists() or network.exists(layout):
        _remove_node(layout, processes)
    # The process records are removed last, so that they are available to the next attempt after a failure.
    for folder in (
        layout.etcd,
        layout.etcd_snapshot,
        layout.volumes,
        layout.kubelet,
        layout.config,
        layout.pki,
        layout.clients,
        layout.run,
    ):
        if folder.exists():
            shutil.rmtree(folder)
    layout.kubeconfig.unlink(missing_ok=True)


def _remove_node(layout: Layout, processes: Processes) -> None:
    _kill(cgroups.processes(layout.pods_cgroup))
    if processes.pid("containerd") is not None:
        try:
            Containerd(layout).remove_containers()
        except ClusterError as error:
            # The next `up` removes the remaining containers.
            LOG.warning("containerd did not remove all containers: %s", error)
    processes.stop(["containerd"], signal.SIGTERM, seconds=2)
    # Remaining processes, recorded or not: shims, and the holder of the mount namespace.
    becomes_true(lambda: not _kill(cgroups.processes(layout.cgroup)), _KILLED_WITHIN_SECONDS)
    processes.stop([linux_namespaces.HOLDER], signal.SIGKILL, seconds=1)
    host = Host.read(layout.host_record) if layout.host_record.exists() else None
    if host is None or host.is_here:
        # Links of another namespace disappeared with it; kube-proxy's tables here belong to another cluster.
        network.remove(layout)
    cgroups.remove(layout.cgroup)
    if host is not None:
        host.restore()
        layout.host_record.unlink()


def _kill(pids: set[int]) -> set[int]:
    """Kill the running processes, and return them; zombies stay in their cgroup until they are reaped."""
    running = {pid for pid in pids if start_time(pid) is not None}
    for pid in running:
        send(pid, signal.SIGKILL)
    return running
