"""An origin, scheme + host + port: what credentials are bound to."""

from typing import Final, NamedTuple
from urllib.parse import urlsplit

from finetune_trainer.remote.addresses import is_literal, why_forbidden

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where a request goes."""

    scheme: str
    host: str
    port: int


def origin_of(url: str) -> Origin:
    """The origin of an http or https URL. Raises ValueError where it is none."""
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError("it must look like https://HOST or https://HOST:PORT")
    return Origin(parts.scheme, parts.hostname.lower(), parts.port or DEFAULT_PORTS[parts.scheme])


def check_endpoint(url: str) -> str:
    """An endpoint's URL, without a slash at its end.

    Raises ValueError where it is more than an address, or one that nobody may connect to.
    """
    host = origin_of(url).host
    reason = why_forbidden(host) if is_literal(host) else None
    if reason is not None:
        raise ValueError(f"{host} {reason}; no source or store may be there")
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("it must have no user's name or password in it; they have keys of their own")
    if parts.query or parts.fragment:
        raise ValueError("it must end before the first ? or #")
    return url.rstrip("/")
