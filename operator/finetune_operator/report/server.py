# SPDX-License-Identifier: Apache-2.0
"""HTTPS server of `POST /v1/reports`, and how the active process publishes it.

The report Service has no selector: an EndpointSlice routes it to the active process. Reports only show
progress. A run whose reports are all lost has the same result.
"""

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError
from finetune_operator.engine.executor import Stamp
from finetune_operator.engine.http_server import Certificate, PortListener, ensure_certificate, host_of
from finetune_operator.engine.resources import ENDPOINT_SLICE
from finetune_operator.engine.token_reviews import KeyedTokenBuckets, TooManyReviews
from finetune_operator.plan import Manifest
from finetune_operator.report.authorization import Authorizer, Caller, ReportDenied
from finetune_operator.report.progress_cache import ProgressCache
from finetune_trainer.contract.base import CONTRACT_VERSION
from finetune_trainer.contract.environment import REPORT_PATH
from finetune_trainer.contract.references import ReportTarget
from finetune_trainer.contract.results import Report

PORT_NAME: Final = "report"


def make_report_target(service: str, namespace: str, port: int, certificate: Certificate) -> ReportTarget:
    """Address and CA of the endpoint, for the configs of pods."""
    return ReportTarget(url=f"https://{host_of(service, namespace)}:{port}", ca_pem=certificate.ca)


def build_endpoint_slice(service: str, namespace: str, address: str, port: int) -> Manifest:
    """The EndpointSlice of the Service. The active process applies it with its own address."""
    version = ipaddress.ip_address(address).version
    return {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.kind,
        "metadata": {
            # The address type of a slice is immutable.
            "name": f"{service}-ipv{version}",
            "namespace": namespace,
            "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "finetune-operator",
            },
        },
        "addressType": f"IPv{version}",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": PORT_NAME, "port": port, "protocol": "TCP"}],
    }


logger = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024
REPORTS_PER_SECOND: Final = 2.0
REPORT_BURST: Final = 20.0
MAX_REMEMBERED_PODS: Final = 10_000


class ReportServer(PortListener):
    """Accepts reports while this process is active, and responds with 503 otherwise.

    Args:
        authorizer: identifies the caller by its token.
        board: receives accepted reports.
        active: whether this process is active.
        answered: called with the HTTP status of every response.
    """

    def __init__(
        self,
        authorizer: Authorizer,
        board: ProgressCache,
        active: Callable[[], bool],
        answered: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._authorizer = authorizer
        self._board = board
        self._active = active
        self._answered = answered
        self._buckets = KeyedTokenBuckets(REPORTS_PER_SECOND, REPORT_BURST, MAX_REMEMBERED_PODS)

    async def start(self, port: int, context: ssl.SSLContext) -> None:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post(REPORT_PATH, self._report)
        await self.listen(app, port, context)
        logger.info("the report endpoint listens on port %d", port)

    async def _report(self, request: web.Request) -> web.Response:
        answer = await self._answer(request)
        self._answered(answer.status)
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        if not self._active():
            return _refusal(503, "this process is not the active one", retry=True)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return _refusal(401, "send the projected token as Authorization: Bearer")
        try:
            caller = await self._authorizer.caller(token, request.remote or "")
        except ReportDenied as error:
            return _refusal(401, str(error))
        except TooManyReviews:
            return _refusal(429, "too many unknown tokens", retry=True)
        except ApiError as error:
            logger.warning("cannot review the token of a report: %s", error)
            return _refusal(503, "the API server did not review the token", retry=True)
        if not self._buckets.take(caller.pod_uid):
            return _refusal(429, f"more than {REPORTS_PER_SECOND:.0f} reports per second", retry=True)
        return await self._accept(caller, request)

    async def _accept(self, caller: Caller, request: web.Request) -> web.Response:
        try:
            report = Report.parse(await request.read())
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, f"a report may have at most {MAX_BODY_BYTES} bytes")
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            return _refusal(400, f"not a report of contract {CONTRACT_VERSION}: {where}: {problem['msg']}")
        if report.owner.uid != caller.uid:
            return _refusal(
                403, f"this pod works for {caller.kind} {caller.name}, not for {report.owner.name}"
            )
        self._board.accept(caller, report)
        return web.Response(status=204)


def _refusal(status: int, message: str, *, retry: bool = False) -> web.Response:
    headers = {"Retry-After": "5"} if retry else {}
    return web.json_response({"error": message}, status=status, headers=headers)


FIRST_TRY_SECONDS: Final = 10.0
"""Time that the first pass waits for the endpoint, so that new Jobs get its address."""
REASSERT_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 10.0
PUBLISH_ERRORS: Final = (ApiError, ValueError, OSError, TimeoutError)


class ReportEndpoint:
    """Publishes the endpoint and keeps it published. Failures are logged and affect nothing else.

    Args:
        cluster: client for the certificate and the EndpointSlice.
        server: HTTPS server.
        stamp: annotation of the EndpointSlice.
        service: Service without a selector, in `namespace`.
        namespace: namespace of the operator.
        address: IP address of this pod; empty: no endpoint.
        port: port of the server and of the Service.

    Attributes:
        target: address and CA for pods; None until the endpoint is published.
        up: whether the last attempt to publish succeeded; None without an address.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        server: ReportServer,
        stamp: Stamp,
        *,
        service: str,
        namespace: str,
        address: str,
        port: int,
    ) -> None:
        self._cluster = cluster
        self._server = server
        self._stamp = stamp
        self._service = service
        self._namespace = namespace
        self._address = address
        self._port = port
        self._context: ssl.SSLContext | None = None
        self._served: Certificate | None = None
        self.target: ReportTarget | None = None
        self.up: bool | None = False if address else None

    async def publish_soon(self) -> None:
        """Try to publish for at most FIRST_TRY_SECONDS. `keep` tries again later."""
        if not self._address:
            logger.info("POD_IP is not set: pods cannot report their progress")
            return
        try:
            async with asyncio.timeout(FIRST_TRY_SECONDS):
                await self._publish()
        except PUBLISH_ERRORS as error:
            self.up = False
            logger.warning(
                "cannot publish the report endpoint yet, so pods cannot report progress: %s", error
            )

    async def keep(self) -> None:
        """Publish again periodically while this process is active. Never returns."""
        while True:
            await asyncio.sleep(RETRY_SECONDS if self._address and self.target is None else REASSERT_SECONDS)
            if not self._address:
                continue
            try:
                await self._publish()
            except PUBLISH_ERRORS as error:
                self.up = False
                logger.warning("cannot publish the report endpoint: %s", error)

    async def _publish(self) -> None:
        made = await ensure_certificate(self._cluster, self._service, self._namespace, datetime.now(UTC))
        await self._serve(made)
        wanted = self._stamp.on(
            build_endpoint_slice(self._service, self._namespace, self._address, self._port)
        )
        existing = await self._cluster.get(ENDPOINT_SLICE, self._namespace, wanted["metadata"]["name"])
        if existing is None or not self._stamp.matches(existing, wanted):
            await self._cluster.apply(wanted)
        # Pods must get the CA only after the server has a certificate of it.
        self.target = make_report_target(self._service, self._namespace, self._port, made)
        self.up = True

    async def _serve(self, made: Certificate) -> None:
        """Serve with this certificate, and replace a previous one."""
        if made == self._served:
            return
        if self._context is None:
            context = made.context()
            await self._server.start(self._port, context)
            self._context = context
        else:
            made.load_into(self._context)
            logger.info(
                "the report endpoint uses a new certificate, because Secret %s-tls changed", self._service
            )
        self._served = made
