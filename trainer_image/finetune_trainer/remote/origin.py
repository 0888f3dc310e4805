"""An origin, scheme + host + port: what credentials are bound to."""

from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from finetune_trainer.remote.addresses import is_literal, why_forbidden

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
UNPROTECTED: Final = (
    "over http anybody on the way can read and change it; name a server that stays with https"
)


class Origin(NamedTuple):
    """Where a request goes."""

    scheme: str
    host: str
    port: int


class RedirectRefused(Exception):
    """A redirect that is not followed; what stands beside the host may be a secret and is not said."""

    def __init__(self, url: str, place: str, advice: str) -> None:
        start, end = _shown(url), _shown(urljoin(url, place))
        super().__init__(f"{start} redirects to {end}, and that is not followed: {advice}")


def require_https(start: str, url: str) -> None:
    """Raises RedirectRefused for a request without TLS where the first one, to `start`, had it."""
    if urlsplit(url).scheme == "http" and urlsplit(start).scheme == "https":
        raise RedirectRefused(start, url, UNPROTECTED)


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


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
