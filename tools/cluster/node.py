# SPDX-License-Identifier: Apache-2.0
"""The kubelet and kube-proxy of the node, and its simulated devices."""

import json
import resource
from pathlib import Path
from typing import Final

from tools.cluster.kubectl import Kubectl
from tools.cluster.layout import DNS_ADDRESS, NODE_ADDRESS, POD_NETWORK, Layout, render
from tools.cluster.toolchain import program

GPU_RESOURCE: Final = "example.com/gpu"
"""Not NVIDIA's name: a stage with NVIDIA devices needs the CUDA variant of the trainer image."""
GPUS: Final = 4
DEVICE_LABEL: Final = "finetune.dev/device=fake-gpu"


def bound_folders(layout: Layout) -> dict[Path, Path]:
    """Our folders by the hard-coded path of containerd, the CNI plugins or the kubelet that they replace."""
    return {
        Path("/run/containerd"): layout.run / "shims",
        Path("/var/lib/cni"): layout.run / "cni-cache",
        Path("/var/log/containers"): layout.log / "containers",
        Path("/var/lib/kubelet"): layout.kubelet,
    }


def write_config(layout: Layout) -> None:
    """Write the configuration files of kubelet and kube-proxy."""
    (layout.config / "resolv.conf").touch()
    _, open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    kubelet = render(
        "kubelet.yaml",
        cgroup=layout.cgroup,
        address=NODE_ADDRESS,
        pki=layout.pki,
        socket=layout.containerd_socket,
        dns_address=DNS_ADDRESS,
        config=layout.config,
        log=layout.log,
        open_files=open_files,
    )
    (layout.config / "kubelet.yaml").write_text(kubelet)
    proxy = render(
        "kube-proxy.yaml",
        kubeconfig=layout.config / "kube-proxy.kubeconfig",
        pod_network=POD_NETWORK,
        node=layout.node_name,
        address=NODE_ADDRESS,
    )
    # kube-proxy ends when this file is rewritten, even with the same text.
    (layout.config / "kube-proxy.yaml").write_text(proxy)


def kubelet(layout: Layout) -> list[str]:
    return [
        str(program("kubelet")),
        f"--config={layout.config}/kubelet.yaml",
        f"--kubeconfig={layout.config}/kubelet.kubeconfig",
        f"--hostname-override={layout.node_name}",
        f"--node-ip={NODE_ADDRESS}",
        f"--node-labels={DEVICE_LABEL}",
        "--v=2",
    ]


def kube_proxy(layout: Layout) -> list[str]:
    return [str(program("kube-proxy")), f"--config={layout.config}/kube-proxy.yaml"]


def add_gpus(kubectl: Kubectl, layout: Layout) -> None:
    """Add GPUs to the node's status that exist only for the scheduler; the kubelet's updates keep them."""
    path = GPU_RESOURCE.replace("/", "~1")
    patch = [
        {"op": "add", "path": f"/status/{field}/{path}", "value": str(GPUS)}
        for field in ("capacity", "allocatable")
    ]
    kubectl.run(
        "patch",
        "node",
        layout.node_name,
        "--subresource=status",
        "--type=json",
        f"--patch={json.dumps(patch)}",
    )


def is_ready(kubectl: Kubectl, layout: Layout) -> bool:
    """Whether the node is Ready and has its GPUs."""
    if not kubectl.succeeds("get", "node", layout.node_name):
        return False
    status = kubectl.get("node", layout.node_name)["status"]
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
    return conditions.get("Ready") == "True" and status.get("allocatable", {}).get(GPU_RESOURCE) == str(GPUS)
