# SPDX-License-Identifier: Apache-2.0
"""Publish the report endpoint from the active process: certificate, server and EndpointSlice."""

import asyncio
import logging
import ssl
from datetime import UTC, datetime
from typing import Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError
from finetune_operator.engine.executor import Stamp
from finetune_operator.engine.resources import ENDPOINT_SLICE
from finetune_operator.report import certificate, endpointslice
from finetune_operator.report.server import ReportServer
from finetune_trainer.contract.references import ReportTarget

logger = logging.getLogger(__name__)

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
        self._served: certificate.Certificate | None = None
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
        made = await certificate.ensure(self._cluster, self._service, self._namespace, datetime.now(UTC))
        await self._serve(made)
        wanted = self._stamp.on(
            endpointslice.build_endpoint_slice(self._service, self._namespace, self._address, self._port)
        )
        existing = await self._cluster.get(ENDPOINT_SLICE, self._namespace, wanted["metadata"]["name"])
        if existing is None or not self._stamp.matches(existing, wanted):
            await self._cluster.apply(wanted)
        # Pods must get the CA only after the server has a certificate of it.
        self.target = endpointslice.make_report_target(self._service, self._namespace, self._port, made)
        self.up = True

    async def _serve(self, made: certificate.Certificate) -> None:
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
