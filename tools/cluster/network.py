# SPDX-License-Identifier: Apache-2.0
"""The pod network: a bridge with the node's address, and masquerading to the outside."""

import json
import socket
from ipaddress import IPv4Network
from typing import Final

from tools.cluster.commands import run, succeeds
from tools.cluster.errors import ClusterError
from tools.cluster.layout import NODE_ADDRESS, POD_NETWORK, SERVICE_NETWORK, Layout
from tools.cluster.templates import render
from tools.cluster.toolchain import system_program

_DEFAULT_MTU: Final = 1500


def check_free(layout: Layout) -> None:
    """Check that nothing else on this machine uses the cluster's addresses.

    Raises:
        ClusterError: a route of another interface overlaps; the message names the interface.
    """
    for network, interface in routes():
        for ours in (POD_NETWORK, SERVICE_NETWORK):
            if interface != layout.bridge and network.prefixlen > 0 and network.overlaps(ours):
                raise ClusterError(
                    f"the cluster's network {ours} overlaps with {network} of interface {interface}. "
                    "If that is another cluster of this tool, stop it: "
                    f"python -m tools.cluster down --name {interface.removesuffix('0')}"
                )


def routes() -> list[tuple[IPv4Network, str]]:
    """Destination and interface of each route of this machine; the default route is 0.0.0.0/0."""
    found = json.loads(run([_ip(), "-json", "route"]))
    return [
        (IPv4Network(route["dst"].replace("default", "0.0.0.0/0")), route["dev"])
        for route in found
        if "dev" in route
    ]


def create(layout: Layout) -> None:
    """Create the bridge, the masquerading table and the CNI configuration."""
    ip = _ip()
    run([ip, "link", "add", layout.bridge, "type", "bridge"])
    run([ip, "address", "add", f"{NODE_ADDRESS}/{POD_NETWORK.prefixlen}", "dev", layout.bridge])
    run([ip, "link", "set", layout.bridge, "up"])
    # Without this route the host, and so the API server, would reach Services only through a default route.
    run([ip, "route", "add", str(SERVICE_NETWORK), "dev", layout.bridge])
    create_masquerading(layout)
    folder = layout.config / "cni"
    folder.mkdir(exist_ok=True)
    conflist = render(
        "cni.conflist",
        name=layout.name,
        bridge=layout.bridge,
        mtu=_uplink_mtu(),
        allocations=layout.run / "cni",
        pod_network=POD_NETWORK,
    )
    (folder / f"10-{layout.name}.conflist").write_text(conflist)


def create_masquerading(layout: Layout) -> None:
    """Masquerade what pods send to other networks."""
    run([_nft(), "-f", "-"], text=render("masquerade.nft", table=layout.bridge, pod_network=POD_NETWORK))


def exists(layout: Layout) -> bool:
    """Whether the cluster's bridge exists."""
    return layout.bridge in (name for _, name in socket.if_nameindex())


def remove(layout: Layout) -> None:
    """Remove the bridge and all tables, including those of kube-proxy."""
    nft = _nft()
    for family, table in (("ip", layout.bridge), ("ip", "kube-proxy"), ("ip6", "kube-proxy")):
        if succeeds([nft, "list", "table", family, table]):
            run([nft, "delete", "table", family, table])
    if exists(layout):
        run([_ip(), "link", "delete", layout.bridge])


def _uplink_mtu() -> int:
    for network, interface in routes():
        if network.prefixlen == 0:
            links = json.loads(run([_ip(), "-json", "link", "show", interface]))
            return int(links[0]["mtu"])
    return _DEFAULT_MTU


def _ip() -> str:
    return system_program("ip", "iproute2")


def _nft() -> str:
    return system_program("nft", "nftables")
