# SPDX-License-Identifier: Apache-2.0
"""HTTP requests to the API server: address, authentication, count, and the errors of failures."""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import KUBE_CONFIG_DEFAULT_LOCATION, load_incluster_config, load_kube_config
from kubernetes.aio.config.incluster_config import SERVICE_TOKEN_FILENAME

from finetune_operator.engine.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    PageTooLarge,
    Rejected,
    Unavailable,
    Undeclared,
)
from finetune_operator.plan import Manifest

REQUEST_TIMEOUT_SECONDS: Final = 30.0
UNLIMITED: Final = 0
JSON: Final = "application/json"
DEFAULT_TIMEOUT: Final = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
"""Timeout of a request with a short response."""

OnRequest = Callable[[str, str], None]
"""Called after every request with its verb and status code; the code is `error` without a response."""
Fence = Callable[[], None]
"""Called before every write; raises NotActive if it must not be sent."""


async def load_configuration(kubeconfig: Path | None = None) -> Configuration:
    """Load the configuration of the client.

    Args:
        kubeconfig: path of a kubeconfig. None: the file in KUBECONFIG, else the pod's service account, else
            `~/.kube/config`.
    """
    configuration = Configuration()
    in_pod = kubeconfig is None and "KUBECONFIG" not in os.environ
    if in_pod and await asyncio.to_thread(Path(SERVICE_TOKEN_FILENAME).exists):
        load_incluster_config(client_configuration=configuration)
    else:
        await load_kube_config(
            # The library's default was read from the environment at its import.
            config_file=str(kubeconfig or os.environ.get("KUBECONFIG", KUBE_CONFIG_DEFAULT_LOCATION)),
            client_configuration=configuration,
            persist_config=False,
        )
    # Every watch uses a connection: with 25 namespaces, the default of 100 leaves none for requests.
    configuration.connection_pool_maxsize = UNLIMITED
    # Otherwise aiohttp reads proxies from the environment and ~/.netrc for each request, in a thread.
    configuration.proxy = configuration.proxy or proxy_of(configuration.host)
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


def proxy_of(server: str) -> str | None:
    """The proxy for a URL by `HTTPS_PROXY` and `NO_PROXY`, or None."""
    parts = urlsplit(server)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `verb` is the Kubernetes verb, such as `list`."""

    verb: str
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Manifest | None = None
    content_type: str = JSON
    limits: aiohttp.ClientTimeout = DEFAULT_TIMEOUT
    max_bytes: int | None = None
    """Max bytes of the response; None: any number."""


class Transport:
    """The connection to the API server. It retries nothing."""

    def __init__(
        self, configuration: Configuration, user_agent: str, on_request: OnRequest, fence: Fence
    ) -> None:
        self._client = ApiClient(configuration)
        self._client.user_agent = user_agent
        self._on_request = on_request
        self._fence = fence

    async def close(self) -> None:
        await self._client.close()

    async def call(self, request: Request) -> Manifest:
        """Send the request and return the response as JSON.

        Raises:
            Conflict, Rejected, Unavailable: see `error_of`.
            NotActive: the fence refused a write.
            PageTooLarge: the response has more than `max_bytes`.
        """
        try:
            response = await self.open(request)
            answer: Manifest = json.loads(await _body(response, request))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # ValueError: a proxy sent a response that is not JSON.
            raise Unavailable(f"{request.method} {request.path}: {type(error).__name__} {error}") from error
        return answer

    async def open(self, request: Request) -> aiohttp.ClientResponse:
        """Send the request and return the unread response. Errors of aiohttp are not translated."""
        method, url, headers, body, _ = await self._client.param_serialize(
            request.method,
            request.path,
            query_params=list(request.query.items()),
            header_params={"Accept": JSON, "Content-Type": request.content_type},
            body=request.body,
            auth_settings=["BearerToken"],
        )
        if request.method != "GET":
            # As late as possible, because the process may have been frozen at any time before.
            self._fence()
        code = "error"
        try:
            wrapped = await self._client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=request.limits
            )
            response: aiohttp.ClientResponse = wrapped.response
            code = str(response.status)
        finally:
            self._on_request(request.verb, code)
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise error_of(response.status, response.headers.get("Retry-After"), await response.read())
        return response


async def _body(response: aiohttp.ClientResponse, request: Request) -> bytes:
    if request.max_bytes is None:
        return await response.read()
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > request.max_bytes:
            response.close()
            raise PageTooLarge(f"{request.method} {request.path}: more than {request.max_bytes} bytes")
    return b"".join(parts)


UNDECLARED: Final = "field not declared in schema"
"""Message of the API server for an apply of a field that the installed definition lacks."""


def error_of(code: int, retry_after: str | None, body: bytes) -> ApiError:
    """The error for a response.

    Args:
        code: HTTP status, at least 400.
        retry_after: value of the Retry-After header.
        body: a `Status` as JSON, or whatever a proxy sent.
    """
    status = _status(body)
    reason = status.get("reason") or f"HTTP{code}"
    message = status.get("message") or body.decode(errors="replace")[:500] or f"HTTP status {code}"
    if code == HTTPStatus.CONFLICT:
        return AlreadyExists(message) if reason == "AlreadyExists" else Conflict(message)
    if UNDECLARED in message:
        return Undeclared(code, reason, message)
    temporary = {HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
    if code in temporary or code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
        return Unavailable(message, retry_after_seconds=seconds)
    causes = (status.get("details") or {}).get("causes") or []
    named = {cause.get("reason", "") for cause in causes} | {cause.get("field", "") for cause in causes}
    return Rejected(code, reason, message, frozenset(named - {""}))


def _status(body: bytes) -> dict[str, Any]:
    try:
        status = json.loads(body)
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}
