"""Clients that have just started: each request looks its host up in the cluster's DNS and connects anew."""

from typing import Final

import httpx2
from openai import DefaultHttpxClient, OpenAI

from tools.cluster.dns import resolve
from tools.cluster.layout import DNS_ADDRESS
from tools.demo.endpoint import REQUEST_SECONDS

LOOKUPS: Final = 2
"""How often a name server is asked before a name has no address: that often a resolver does by default."""


def client_of(service: str, namespace: str) -> OpenAI:
    """A client of an endpoint by its name; a failed request is not sent again, so that it is seen."""
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
