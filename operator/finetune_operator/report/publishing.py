"""The report endpoint's life in the active process: certificate, server, and the Service's way to it."""

import asyncio
import logging
import ssl
from datetime import UTC, datetime
from typing import Final

from finetune_operator.engine.applying import Stamp
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError
from finetune_operator.engine.resources import ENDPOINT_SLICE
from finetune_operator.report import certificate, endpointslice
from finetune_operator.report.server import ReportServer
from finetune_trainer.contract.references import ReportTarget

logger = logging.getLogger(__name__)

FIRST_TRY_SECONDS: Final = 10.0
"""Seconds that the first pass waits for the endpoint, so that its Jobs know of it."""
REASSERT_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 10.0
TROUBLE: Final = (ApiError, ValueError, OSError, TimeoutError)


class ReportEndpoint:
    """Makes the endpoint reachable, and keeps it so; that it cannot is logged and hinders nothing else.

    Args:
        cluster: where certificate and EndpointSlice are kept.
        server: what listens.
        stamp: marks the EndpointSlice.
        service: the selector-less Service, in `namespace`.
        namespace: of the operator.
        address: of this process; empty: there is no endpoint.
        port: of this process and of the Service.

    Attributes:
        target: what pods are told; None until the endpoint is reachable.
        up: whether the last attempt to publish it succeeded; None where there is to be no endpoint.
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
        """Publish, or give up waiting for it after some seconds; `keep` goes on trying."""
        if not self._address:
            logger.info("this process has no address for pods (POD_IP): progress is not seen")
            return
        try:
            async with asyncio.timeout(FIRST_TRY_SECONDS):
                await self._publish()
        except TROUBLE as error:
            self.up = False
            logger.warning("the report endpoint is not reachable yet, progress is not seen: %s", error)

    async def keep(self) -> None:
        """Publish again from time to time while this process is the active one; never ends by itself."""
        while True:
            await asyncio.sleep(RETRY_SECONDS if self._address and self.target is None else REASSERT_SECONDS)
            if not self._address:
                continue
            try:
                await self._publish()
            except TROUBLE as error:
                self.up = False
                logger.warning("the report endpoint could not be published: %s", error)

    async def _publish(self) -> None:
        made = await certificate.ensure(self._cluster, self._service, self._namespace, datetime.now(UTC))
        await self._serve(made)
        wanted = self._stamp.on(
            endpointslice.endpoint_slice(self._service, self._namespace, self._address, self._port)
        )
        existing = await self._cluster.get(ENDPOINT_SLICE, self._namespace, wanted["metadata"]["name"])
        if existing is None or not self._stamp.matches(existing, wanted):
            await self._cluster.apply(wanted)
        # Pods are told of a CA only once the server has a certificate of it.
        self.target = endpointslice.target(self._service, self._namespace, self._port, made)
        self.up = True

    async def _serve(self, made: certificate.Certificate) -> None:
        """Listen with this certificate, whatever it was before."""
        if made == self._served:
            return
        if self._context is None:
            context = made.context()
            await self._server.start(self._port, context)
            self._context = context
        else:
            made.load_into(self._context)
            logger.info(
                "the report endpoint has another certificate now: Secret %s-tls changed", self._service
            )
        self._served = made
