# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes with one real node: containers, network, Services, DNS, volumes and simulated GPUs."""

import logging
import sys
from pathlib import Path
from typing import ClassVar, Final

from tools.cluster import cgroups, containerd, control_plane_commands, linux_namespaces, network, node
from tools.cluster.commands import ClusterError
from tools.cluster.containerd import Containerd
from tools.cluster.control_plane import ControlPlane
from tools.cluster.host import Host
from tools.cluster.layout import DEFAULT_NAME, DNS_ADDRESS, KUBERNETES_ADDRESS, NODE_ADDRESS, render
from tools.cluster.provisioner import PROVISIONER
from tools.cluster.toolchain import TOOLS

LOG: Final = logging.getLogger(__name__)
PROVISIONER_PROCESS: Final = "provisioner"
_WITH_MOUNTS: Final = frozenset({"containerd", "kubelet"})
"""Processes that run in the mount namespace with the bound folders."""
_REPOSITORY: Final = Path(__file__).resolve().parents[2]


class TestCluster(ControlPlane):
    """A control plane and a node. Needs root; a network namespace can have one."""

    __test__ = False  # pytest must not collect it

    tools = TOOLS
    address = NODE_ADDRESS
    fixed_ports: ClassVar = {"kube-apiserver": 6443}
    has_node = True
    controllers = (*ControlPlane.controllers, "kube-scheduler")
    agents = ("kubelet", "kube-proxy")

    def __init__(self, name: str = DEFAULT_NAME) -> None:
        """Use the files of the cluster `name`.

        Raises:
            ClusterError: the name is not valid.
        """
        super().__init__(name)
        self.containerd = Containerd(self.layout)

    def load_archive(self, archive: Path) -> None:
        """Import a Docker or OCI image archive for pods with imagePullPolicy IfNotPresent or Never.

        Raises:
            ClusterError: the cluster does not run, or the file is not an image archive.
        """
        if not self.containerd.is_ready():
            raise ClusterError(f"the cluster {self.layout.name} does not run: start it with `up`")
        self.containerd.load_archive(archive)

    def _commands(self, chosen: dict[str, int]) -> dict[str, list[str]]:
        return super()._commands(chosen) | {
            "kube-scheduler": control_plane_commands.scheduler(self.layout, chosen),
            linux_namespaces.HOLDER: list(linux_namespaces.COMMAND),
            "containerd": self.containerd.command(),
            "kubelet": node.kubelet(self.layout),
            "kube-proxy": node.kube_proxy(self.layout),
        }

    def _restartable(self) -> set[str]:
        return {PROVISIONER_PROCESS}

    def _keep_running(self) -> None:
        if self._processes.pid(PROVISIONER_PROCESS) is None:
            self._start_provisioner()

    def _start(self) -> None:
        layout = self.layout
        network.check_free(layout)
        chosen = self._prepare()
        binds = node.bound_folders(layout)
        Host.prepare(list(binds), layout.host_record)
        network.create(layout)
        cgroups.create(layout.cgroup)
        self.containerd.write_config()
        node.write_config(layout)
        inside = linux_namespaces.create_mount_namespace(self._processes, binds)
        cgroups.enter(layout.cgroup, inside)
        LOG.info("Network, cgroups and mount namespace created")

        commands = self._commands(chosen)
        for name in ("etcd", "kube-apiserver", "containerd"):
            self._start_process(name, commands)
        self._wait("containerd", self.containerd.is_ready, seconds=60)
        # A killed cluster may have left containers in the store.
        self.containerd.remove_containers()
        self.containerd.load_own_images()
        LOG.info("containerd is ready")
        self._wait_for_api_server()
        for name in (*self.controllers, *self.agents):
            self._start_process(name, commands)
        self._start_provisioner()
        coredns = render("coredns.yaml", image=containerd.COREDNS_IMAGE, dns_address=DNS_ADDRESS)
        self.kubectl.run("apply", "--filename=-", text=coredns)
        self.kubectl.run("apply", "--filename=-", text=render("storage-class.yaml", provisioner=PROVISIONER))
        self._wait("the node", lambda: self.kubectl.succeeds("get", "node", layout.node_name), seconds=60)
        node.add_gpus(self.kubectl, layout)

    def restore(self) -> None:
        """Restore the control plane; the kubelet ends containers without a pod and keeps the rest."""
        super().restore()
        # CoreDNS serves names from objects that it watched before.
        coredns = ("deployment/coredns", "--namespace=kube-system")
        self.kubectl.run("rollout", "restart", *coredns)
        self.kubectl.run("rollout", "status", *coredns, "--timeout=90s")
        self._wait_until_ready()

    def _start_process(self, name: str, commands: dict[str, list[str]]) -> None:
        inside = self._processes.pid(linux_namespaces.HOLDER) if name in _WITH_MOUNTS else None
        pid = self._processes.start(name, commands[name], mount_namespace_of=inside)
        cgroups.enter(self.layout.cgroup, pid)

    def _start_provisioner(self) -> None:
        kubeconfig = self.layout.config / "provisioner.kubeconfig"
        command = [
            sys.executable,
            "-m",
            "tools.cluster.provisioner",
            str(kubeconfig),
            str(self.layout.volumes),
        ]
        pid = self._processes.start(PROVISIONER_PROCESS, command, folder=_REPOSITORY)
        cgroups.enter(self.layout.cgroup, pid)

    def _wait_until_ready(self) -> None:
        super()._wait_until_ready()
        self._wait("the node to be Ready", lambda: node.is_ready(self.kubectl, self.layout), seconds=60)
        LOG.info("Node is ready, with %d simulated GPUs", node.GPUS)
        self._wait("an answer of the cluster's DNS", self._dns_answers, seconds=90)
        LOG.info("DNS answers")

    def _dns_answers(self) -> bool:
        return network.resolve(DNS_ADDRESS, "kubernetes.default.svc.cluster.local") == KUBERNETES_ADDRESS
