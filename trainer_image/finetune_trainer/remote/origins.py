# SPDX-License-Identifier: Apache-2.0
"""Servers that may be contacted: refused addresses, and the origins that credentials are bound to.

Connections to addresses of the node and of the cloud's metadata services are refused by an audit hook on
`connect`. It sees the address after name resolution, on every attempt and every redirect, in every library. A
name that changes its address between check and connection has no effect.

An origin is scheme, host and port of a URL.
"""

import errno
import ipaddress
import os
import sys
from functools import cache
from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit

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
"""Possible bytes of the IPv4 address: a network chooses a prefix of 48, 56, 64 or 96 bits (RFC 6052)."""


class AddressRefused(PermissionError):
    """A connection to an address that is forbidden for sources and stores."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(errno.EACCES, f"{address} {reason}; sources and stores must not use it")


@cache
def guard_connections() -> None:
    """Refuse connections of this process to forbidden addresses. Cannot be undone.

    Removes proxies from the environment, because this process does not see the address behind a proxy.
    """
    sys.addaudithook(_refuse)
    for variable in [name for name in os.environ if name.lower() in PROXIES]:
        del os.environ[variable]


def why_forbidden(text: str) -> str | None:
    """Return why an address is forbidden, or None if it is allowed.

    Private and loopback addresses are allowed, because a cluster's own object store has one.
    """
    try:
        address = _plain(ipaddress.ip_address(text))
    except ValueError:
        return "is an unresolved name"
    for candidate in (address, *_local_nat64(address)):
        if any(candidate in network for network in METADATA):
            return "is a cloud's metadata service"
        if candidate.is_link_local:
            return "is link-local, where clouds have their metadata services"
    if address.is_multicast:
        return "is a multicast address"
    if address.is_unspecified or (address.version == 4 and address in ipaddress.IPv4Network("0.0.0.0/8")):
        return "is unspecified"
    return None


def is_literal(host: str) -> bool:
    """Return whether a host is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event != "socket.connect":
        return
    target = arguments[1]
    # Sockets of other families, such as Unix sockets, have addresses of another form.
    if not isinstance(target, tuple) or not isinstance(target[0], str):
        return
    reason = why_forbidden(target[0])
    if reason is not None:
        raise AddressRefused(target[0], reason)


def _plain(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address embeds, or else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _local_nat64(address: Address) -> tuple[ipaddress.IPv4Address, ...]:
    """Return the IPv4 addresses that a NAT64 address with a local prefix may embed."""
    if address not in LOCAL_NAT64:
        return ()
    packed = address.packed
    return tuple(
        ipaddress.IPv4Address(bytes(packed[index] for index in indices)) for indices in LOCAL_NAT64_BYTES
    )


DEFAULT_PORTS: Final = {"http": 80, "https": 443}
UNPROTECTED: Final = (
    "over http, anyone on the network path can read and change the data; use a server that stays on https"
)


class Origin(NamedTuple):
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int


class RedirectRefused(Exception):
    """A redirect that is not followed. The message names hosts only: the rest of a URL may be secret."""

    def __init__(self, url: str, place: str, advice: str) -> None:
        start, end = _shown(url), _shown(urljoin(url, place))
        super().__init__(f"{start} redirects to {end}, which is not followed: {advice}")


def require_https(start: str, url: str) -> None:
    """Raise RedirectRefused for a request without TLS if the first request, to `start`, used TLS."""
    if urlsplit(url).scheme == "http" and urlsplit(start).scheme == "https":
        raise RedirectRefused(start, url, UNPROTECTED)


def origin_of(url: str) -> Origin:
    """Return the origin of a URL. Raises ValueError unless it is an http or https URL."""
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError("it must have the form https://HOST or https://HOST:PORT")
    return Origin(parts.scheme, parts.hostname.lower(), parts.port or DEFAULT_PORTS[parts.scheme])


def check_endpoint(url: str) -> str:
    """Return the URL of an endpoint without a trailing slash.

    Raises ValueError if it has more than an address, or if the address is forbidden.
    """
    host = origin_of(url).host
    reason = why_forbidden(host) if is_literal(host) else None
    if reason is not None:
        raise ValueError(f"{host} {reason}; sources and stores must not use it")
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("it must not contain a user name or password; use the keys for them")
    if parts.query or parts.fragment:
        raise ValueError("it must not contain ? or #")
    return url.rstrip("/")


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
