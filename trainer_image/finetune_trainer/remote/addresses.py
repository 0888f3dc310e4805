"""Which network addresses this process connects to: none that belongs to the node or the cloud underneath.

The check is an audit hook on `connect`, so it sees the address after name resolution, on every attempt and
after every redirect, whichever library asks: a name that changes its address in between gains nothing.
"""

import errno
import ipaddress
import os
import sys
from functools import cache
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "100.100.100.200/32",  # Alibaba Cloud
            "168.63.129.16/32",  # Azure's wire server
            "192.0.0.192/32",  # Oracle Cloud
            "fd00:ec2::/32",  # AWS
            "fd20:ce::/32",  # Google Cloud
        ),
    )
)
"""Metadata services outside the link-local ranges."""
PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
LOCAL_NAT64_BYTES: Final = ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15))
"""Where the IPv4 address may be: a network chooses its own prefix, of 48, 56, 64 or 96 bits (RFC 6052)."""


class AddressRefused(PermissionError):
    """A connection to an address that no source or store may have."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(errno.EACCES, f"{address} {reason}; no source or store may be there")


@cache
def guard_connections() -> None:
    """From now on, refuse connections of this process to forbidden addresses. Cannot be undone.

    Proxies that the environment names are forgotten: behind one, nobody here sees the address.
    """
    sys.addaudithook(_refuse)
    for variable in [name for name in os.environ if name.lower() in PROXIES]:
        del os.environ[variable]


def why_forbidden(text: str) -> str | None:
    """What is wrong with an address, or None where it may be connected to.

    Private and loopback addresses may: a cluster's own object store has one.
    """
    try:
        address = _plain(ipaddress.ip_address(text))
    except ValueError:
        return "is a name that was not resolved before"
    for meant in (address, *_local_nat64(address)):
        if any(meant in network for network in METADATA):
            return "is a cloud's metadata service"
        if meant.is_link_local:
            return "is link-local, where clouds have their metadata services"
    if address.is_multicast:
        return "is a multicast address"
    if address.is_unspecified or (address.version == 4 and address in ipaddress.IPv4Network("0.0.0.0/8")):
        return "is unspecified"
    return None


def is_literal(host: str) -> bool:
    """Whether a host is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event != "socket.connect":
        return
    target = arguments[1]
    # Sockets of other families, such as Unix ones, have another form of address.
    if not isinstance(target, tuple) or not isinstance(target[0], str):
        return
    reason = why_forbidden(target[0])
    if reason is not None:
        raise AddressRefused(target[0], reason)


def _plain(address: Address) -> Address:
    """The IPv4 address that some IPv6 addresses stand for."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _local_nat64(address: Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses that one behind a network's own translator may stand for."""
    if address not in LOCAL_NAT64:
        return ()
    packed = address.packed
    return tuple(
        ipaddress.IPv4Address(bytes(packed[index] for index in where)) for where in LOCAL_NAT64_BYTES
    )
