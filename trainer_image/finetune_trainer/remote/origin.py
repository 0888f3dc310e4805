# SPDX-License-Identifier: Apache-2.0
"""Origins (scheme, host and port), to which credentials are bound."""

from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from finetune_trainer.remote.addresses import is_literal, why_forbidden

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
