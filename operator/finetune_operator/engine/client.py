# SPDX-License-Identifier: Apache-2.0
"""Client of the API server: its verbs, on plain dicts, and the connection with address and authentication.

A failure is `Conflict`, `Rejected` or `Unavailable`, or a subclass of one of them. A response that is too
large raises `PageTooLarge`.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal
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
from finetune_operator.engine.resources import ResourceType, ResourceTypes
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
    configuration.proxy = configuration.proxy or find_proxy(configuration.host)
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


def find_proxy(server: str) -> str | None:
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
            Conflict, Rejected, Unavailable: see `make_error`.
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
            raise make_error(response.status, response.headers.get("Retry-After"), await response.read())
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


def make_error(code: int, retry_after: str | None, body: bytes) -> ApiError:
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


PAGE_SIZE: Final = 100
"""Objects per page of a list. At a restart, one page of each type is in memory at the same time."""
MAX_PAGE_BYTES: Final = 8 * 2**20
"""Bytes of a page, above which the page is requested again with fewer objects: its size is up to those who
create the objects."""
PAGES_BEFORE_GROWTH: Final = 4
"""Pages after which a smaller page is doubled."""
MAX_SILENCE_SECONDS: Final = 130.0
"""Seconds after which a silent watch is closed. The API server sends a bookmark about once per minute."""
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"

Propagation = Literal["Foreground", "Background"]


class KubernetesClient:
    """Client of the API server. Objects are addressed by type, namespace and name.

    Args:
        configuration: result of `load_configuration`.
        types: types that the client may address.
        field_manager: owner of applied fields; also the user agent.
        on_request: called after every request.
        fence: called before every write; raises NotActive to prevent it.
    """

    def __init__(
        self,
        configuration: Configuration,
        types: ResourceTypes,
        field_manager: str,
        on_request: OnRequest = lambda _verb, _code: None,
        fence: Fence = lambda: None,
    ) -> None:
        self.types = types
        self._manager = {"fieldManager": field_manager}
        self._transport = Transport(configuration, field_manager, on_request, fence)

    async def close(self) -> None:
        await self._transport.close()

    async def get(
        self, type_: ResourceType, namespace: str, name: str, subresource: str = ""
    ) -> Manifest | None:
        """The current object or its subresource, or None if it does not exist."""
        path = type_.path(namespace, name, subresource)
        try:
            return await self._transport.call(Request("get", "GET", path))
        except Rejected as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def serves(self, type_: ResourceType) -> bool:
        """Whether the API server has the type, by its discovery document."""
        try:
            found = await self._transport.call(Request("get", "GET", type_.discovery_path))
        except Rejected as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return False
            raise
        return any(each["name"] == type_.plural for each in found["resources"])

    async def serves_group(self, type_: ResourceType) -> bool:
        """Whether the API server has the API group of the type, in any version."""
        try:
            await self._transport.call(Request("get", "GET", f"/apis/{type_.api_version.partition('/')[0]}"))
        except Rejected as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    async def pages(
        self,
        type_: ResourceType,
        namespace: str = "",
        selector: str = "",
        fields: str = "",
        *,
        page_size: int | None = None,
        max_page_bytes: int | None = None,
    ) -> AsyncGenerator[tuple[list[Manifest], str]]:
        """All objects, page by page, each page with the resource version of the whole list.

        Args:
            type_: type of the objects.
            namespace: their namespace; empty: all.
            selector: label selector.
            fields: field selector.
            page_size: objects per page. None: PAGE_SIZE.
            max_page_bytes: bytes of a page above which the list ends with an error. None: a page above
                MAX_PAGE_BYTES is requested again with fewer objects.

        Raises:
            Rejected: 404 if the type is not installed; 410 if reading took so long that the API server has
                dropped the snapshot of the list: start again.
            PageTooLarge: a page has more than `max_page_bytes`.
        """
        selectors = {"labelSelector": selector, "fieldSelector": fields}
        query = {name: text for name, text in selectors.items() if text}
        full = page_size or PAGE_SIZE
        size, fitting = full, 0
        while True:
            query["limit"] = str(size)
            max_bytes = max_page_bytes or (MAX_PAGE_BYTES if size > 1 else None)
            request = Request("list", "GET", type_.path(namespace), query, max_bytes=max_bytes)
            try:
                page = await self._transport.call(request)
            except PageTooLarge:
                if max_page_bytes is not None:
                    raise
                size, fitting = max(1, size // 4), 0
                continue
            fitting += 1
            if fitting == PAGES_BEFORE_GROWTH:
                size, fitting = min(full, size * 2), 0
            # Items of a list carry neither apiVersion nor kind.
            identity = {"apiVersion": type_.api_version, "kind": type_.kind}
            yield [identity | item for item in page["items"]], page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue")
            if not token:
                return
            query = {**query, "continue": token}

    async def newest(self, type_: ResourceType, namespace: str = "") -> int:
        """The resource version that a list would have now, at the cost of one object."""
        page = await self._transport.call(Request("list", "GET", type_.path(namespace), {"limit": "1"}))
        return int(page["metadata"]["resourceVersion"])

    async def watch(
        self, type_: ResourceType, namespace: str, selector: str, resource_version: str, *, seconds: int
    ) -> AsyncGenerator[Manifest]:
        """Watch events after a resource version, including bookmarks, until the server ends the stream.

        Raises:
            Unavailable: the stream broke, or was silent for MAX_SILENCE_SECONDS.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        } | ({"labelSelector": selector} if selector else {})
        limits = aiohttp.ClientTimeout(
            total=seconds + 30, sock_connect=REQUEST_TIMEOUT_SECONDS, sock_read=MAX_SILENCE_SECONDS
        )
        request = Request("watch", "GET", type_.path(namespace), query, limits=limits)
        try:
            response = await self._transport.open(request)
            try:
                async for line in response.content:
                    yield json.loads(line)
            finally:
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unavailable(f"the watch broke: {type(error).__name__} {error}") from error

    async def create(self, manifest: Manifest) -> Manifest:
        """POST.

        Raises:
            AlreadyExists: the name is taken.
        """
        type_ = self.types.of(manifest)
        path = type_.path(manifest.get("metadata", {}).get("namespace", ""))
        return await self._transport.call(Request("create", "POST", path, self._manager, manifest))

    async def replace(self, manifest: Manifest) -> Manifest:
        """PUT. The manifest has the resourceVersion that it replaces."""
        path = self._path(manifest)
        return await self._transport.call(Request("update", "PUT", path, self._manager, manifest))

    async def apply(
        self, manifest: Manifest, subresource: str = "", *, force: bool = True, part: str = ""
    ) -> Manifest:
        """Server-side apply. A `part` has its own field manager.

        Raises:
            Conflict: the manifest has a uid, and the object is gone or was replaced by another one.
        """
        manager = "-".join(filter(None, (self._manager["fieldManager"], part)))
        query = {"fieldManager": manager, "force": str(force).lower()}
        path = self._path(manifest, subresource)
        try:
            return await self._transport.call(Request("apply", "PATCH", path, query, manifest, APPLY))
        except Rejected as error:
            # 404: status of an object that is gone. 422 on the uid: another object has the name.
            if error.code == HTTPStatus.NOT_FOUND or "metadata.uid" in error.causes:
                raise Conflict(str(error)) from error
            raise

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Server-side apply of the status. The manifest has only identity and status."""
        return await self.apply(manifest, "status")

    async def patch_metadata(self, manifest: Manifest, metadata: Manifest) -> Manifest:
        """Merge fields into the metadata of exactly this object.

        Raises:
            Conflict: the object changed, was replaced, or is gone.
        """
        seen = {key: manifest["metadata"][key] for key in ("uid", "resourceVersion")}
        path, body = self._path(manifest), {"metadata": {**metadata, **seen}}
        try:
            return await self._transport.call(Request("patch", "PATCH", path, self._manager, body, MERGE))
        except Rejected as error:
            if error.code == HTTPStatus.NOT_FOUND or "metadata.uid" in error.causes:
                raise Conflict(str(error)) from error
            raise

    async def delete(self, manifest: Manifest, propagation: Propagation) -> Manifest | None:
        """Delete exactly this object.

        Returns:
            The terminating object, or None if it is gone already.

        Raises:
            ValueError: the manifest has no uid or resourceVersion.
            Conflict: the object changed, was replaced, or is gone already.
        """
        metadata = manifest["metadata"]
        if not metadata.get("uid") or not metadata.get("resourceVersion"):
            raise ValueError(
                f"delete of {manifest['kind']} {metadata['name']} needs its uid and resourceVersion"
            )
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
        }
        request = Request("delete", "DELETE", self._path(manifest), body=options)
        try:
            answer = await self._transport.call(request)
        except Rejected as error:
            if error.code == HTTPStatus.NOT_FOUND:
                raise Conflict(str(error)) from error
            raise
        return None if answer["kind"] == "Status" else answer

    def _path(self, manifest: Manifest, subresource: str = "") -> str:
        metadata = manifest["metadata"]
        return self.types.of(manifest).path(metadata.get("namespace", ""), metadata["name"], subresource)
