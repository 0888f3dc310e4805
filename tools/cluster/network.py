# SPDX-License-Identifier: Apache-2.0
"""The pod network: a bridge with the node's address, masquerading to the outside, and a check of DNS."""

import json
import secrets
import socket
import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from tools.cluster.commands import ClusterError, run, succeeds
from tools.cluster.layout import NODE_ADDRESS, POD_NETWORK, SERVICE_NETWORK, Layout, render
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


_PORT: Final = 53
_ADDRESS_RECORD: Final = 1
_INTERNET: Final = 1
_RECURSION_DESIRED: Final = 0x0100
_POINTER: Final = 0xC0
_TIMEOUT_SECONDS: Final = 1.0


def resolve(server: IPv4Address, name: str) -> IPv4Address | None:
    """First address of `name` from `server` (RFC 1035); None if there is no such answer within 1 s."""
    query = secrets.token_bytes(2) + struct.pack(">5H", _RECURSION_DESIRED, 1, 0, 0, 0)
    for label in name.rstrip(".").split("."):
        query += bytes([len(label)]) + label.encode("ascii")
    query += struct.pack(">BHH", 0, _ADDRESS_RECORD, _INTERNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(_TIMEOUT_SECONDS)
        try:
            connection.connect((str(server), _PORT))
            connection.send(query)
            answer = connection.recv(512)
        except OSError:
            return None
    return _first_address(query, answer)


def _first_address(query: bytes, answer: bytes) -> IPv4Address | None:
    """Address of the first record of `answer`; None if it does not answer `query` or is not of type A."""
    answers = struct.unpack_from(">H", answer, 6)[0] if len(answer) > len(query) else 0
    if answer[:2] != query[:2] or not answers:
        return None
    # The record follows the header and the question, and begins with its name.
    position = _after_name(answer, len(query))
    kind, _, _, length = struct.unpack_from(">HHIH", answer, position)
    if kind != _ADDRESS_RECORD or length != 4:
        return None
    return IPv4Address(answer[position + 10 : position + 14])


def _after_name(message: bytes, position: int) -> int:
    """Position after the name at `position`, which ends with an empty label or a pointer of two bytes."""
    while message[position]:
        if message[position] >= _POINTER:
            return position + 2
        position += 1 + message[position]
    return position + 1
