# SPDX-License-Identifier: Apache-2.0
"""A client that resolves the host in the cluster's DNS and opens a new connection for every request."""

from typing import Final

import httpx2
from openai import DefaultHttpxClient, OpenAI

from finetune_client.endpoint import REQUEST_SECONDS
from tools.cluster.layout import DNS_ADDRESS
from tools.cluster.network import resolve

LOOKUPS: Final = 2
"""Number of attempts to resolve a name; the default of resolvers."""


def client_of(service: str, namespace: str) -> OpenAI:
    """A client of an endpoint by its name, without retries, so that failed requests are visible."""
    transport = _NewConnections(limits=httpx2.Limits(max_keepalive_connections=0))
    return OpenAI(
        base_url=f"http://{service}.{namespace}.svc.cluster.local/v1",
        api_key="none",
        max_retries=0,
        timeout=REQUEST_SECONDS,
        http_client=DefaultHttpxClient(transport=transport, trust_env=False, timeout=REQUEST_SECONDS),
    )


class _NewConnections(httpx2.HTTPTransport):
    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host
        address = next(filter(None, (resolve(DNS_ADDRESS, host) for _ in range(LOOKUPS))), None)
        if address is None:
            raise httpx2.ConnectError(f"{host} has no address", request=request)
        request.url = request.url.copy_with(host=str(address))
        return super().handle_request(request)
