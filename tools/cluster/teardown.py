"""Stop a cluster and undo everything that it did to the machine, in whatever state it was left."""

import logging
import shutil
import signal
from typing import Final

from tools.cluster import cgroups, namespace, network
from tools.cluster.containerd import Containerd
from tools.cluster.errors import ClusterError
from tools.cluster.host import Host
from tools.cluster.layout import Layout
from tools.cluster.processes import Processes, send, start_time
from tools.cluster.waiting import becomes_true

LOG: Final = logging.getLogger(__name__)
# Stopped first and politely, so that they do not undo what follows.
_AGENTS: Final = ("kubelet", "kube-proxy", "provisioner")
_KILLED_WITHIN_SECONDS: Final = 10
_NODE: Final = ("containerd", namespace.HOLDER)


def tear_down(layout: Layout, processes: Processes) -> None:
    """Leave of the cluster only its logs and its image store.

    Raises:
        ClusterError: something could not be removed; running it again goes on from there.
    """
    names = processes.names()
    processes.stop([name for name in _AGENTS if name in names], signal.SIGTERM, seconds=5)
    # Nothing of the control plane is kept, so it need not close its files.
    control_plane = [name for name in names if name not in (*_AGENTS, *_NODE)]
    processes.stop(control_plane, signal.SIGKILL, seconds=5)
    if layout.host_record.exists() or network.exists(layout):
        _remove_node(layout, processes)
    # The records of processes go last, so that a failure before leaves them to the next attempt.
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
            # The next `up` removes what containerd still remembers.
            LOG.warning("containerd did not forget all containers: %s", error)
    processes.stop(["containerd"], signal.SIGTERM, seconds=2)
    # What is left, known or not: shims, and the holder of the mount namespace.
    becomes_true(lambda: not _kill(cgroups.processes(layout.cgroup)), _KILLED_WITHIN_SECONDS)
    processes.stop([namespace.HOLDER], signal.SIGKILL, seconds=1)
    host = Host.read(layout.host_record) if layout.host_record.exists() else None
    if host is None or host.is_here:
        # Those of another namespace have gone with it, and kube-proxy's tables here are not this cluster's.
        network.remove(layout)
    cgroups.remove(layout.cgroup)
    if host is not None:
        host.restore()
        layout.host_record.unlink()


def _kill(pids: set[int]) -> set[int]:
    """Kill those that run, and return them; zombies stay in their cgroup until they are reaped."""
    running = {pid for pid in pids if start_time(pid) is not None}
    for pid in running:
        send(pid, signal.SIGKILL)
    return running
