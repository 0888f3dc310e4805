# SPDX-License-Identifier: Apache-2.0
"""Access to an endpoint: its gateway and its NetworkPolicy."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.labels import PeerSelector
from finetune_operator.api.meta import DNS_LABEL, DNS_SUBDOMAIN, CELRule, Model, pattern_advice

CIDR: Final = r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"


class IPBlock(Model):
    """Range of addresses."""

    cidr: Annotated[
        str,
        Field(
            min_length=3,
            max_length=64,
            pattern=CIDR,
            json_schema_extra=pattern_advice(CIDR, "write a range of addresses, for example 10.0.0.0/8"),
            description="Range of IPv4 or IPv6 addresses in CIDR notation.",
        ),
    ]


class NetworkPeer(Model):
    """Pods or addresses that may connect, in the form of a NetworkPolicyPeer of Kubernetes."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.ipBlock) != (has(self.namespaceSelector) || has(self.podSelector))",
            "a peer needs either ipBlock or selectors: give namespaceSelector, podSelector or both, or"
            " ipBlock alone",
        ),
    )

    namespace_selector: Annotated[
        PeerSelector | None,
        Field(description="Namespaces of the peer. Default: the endpoint's own namespace."),
    ] = None
    pod_selector: Annotated[
        PeerSelector | None, Field(description="Pods of the peer. Default: all pods of those namespaces.")
    ] = None
    ip_block: Annotated[
        IPBlock | None, Field(description="Addresses of the peer, for clients that are not pods.")
    ] = None


class EndpointNetworkPolicy(Model):
    """NetworkPolicy that refuses all connections to the endpoint's pods except those listed."""

    allow_from: Annotated[
        tuple[NetworkPeer, ...],
        Field(
            max_length=32,
            description="Peers that may connect to the endpoint's port. Empty: none. Pods of the monitoring"
            " namespace of the operator's chart may always connect, because metrics use the same port.",
        ),
    ] = ()


HOSTNAME: Final = r"^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
HTTP_PORT: Final = 80
HTTPS_PORT: Final = 443
NAME_ADVICE: Final = pattern_advice(
    DNS_SUBDOMAIN, "the name may only have lower-case letters, digits, '-' and '.': see kubectl get gateways"
)
GatewayName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN, json_schema_extra=NAME_ADVICE)
]
Hostname = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=HOSTNAME,
        json_schema_extra=pattern_advice(
            HOSTNAME,
            "write a DNS name without scheme and port, for example support.example.com or *.example.com",
        ),
    ),
]


class GatewayReference(Model):
    """Gateway that routes requests to the endpoint, in the form of a ParentReference of the Gateway API."""

    name: Annotated[GatewayName, Field(description="Name of the Gateway.")]
    namespace: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL,
            json_schema_extra=pattern_advice(DNS_LABEL, "write the name of a namespace"),
            description="Namespace of the Gateway. Its listeners must allow routes from the endpoint's"
            " namespace. Default: the endpoint's namespace.",
        ),
    ] = None
    section_name: Annotated[
        GatewayName | None,
        Field(description="Listener of the Gateway. Default: all listeners that allow the route."),
    ] = None
    port: Annotated[
        int | None,
        Field(ge=1, le=65535, description="Port of the listeners. Default: listeners of all ports."),
    ] = None


class EndpointGateway(Model):
    """Gateways and hostnames of the endpoint's HTTPRoute, which the operator creates and owns."""

    parent_refs: Annotated[
        tuple[GatewayReference, ...],
        Field(min_length=1, max_length=8, description="Gateways that route requests to the endpoint."),
    ]
    hostnames: Annotated[
        tuple[Hostname, ...],
        Field(
            max_length=16,
            description="Hostnames of the endpoint, each in one endpoint only. The first one without '*' is"
            " in status.url. Empty: all hostnames of the listeners, so the listeners route to no other"
            " endpoint.",
        ),
    ] = ()

    @property
    def url(self) -> str | None:
        """Base URL for an OpenAI client; None without a hostname.

        The operator reads no Gateway. The URL has https if the first Gateway is named with port 443 or with
        the listener `https`.
        """
        host = next((name for name in self.hostnames if not name.startswith("*")), None)
        if host is None:
            return None
        first = self.parent_refs[0]
        scheme = "https" if first.port == HTTPS_PORT or first.section_name == "https" else "http"
        port = "" if first.port in {None, HTTP_PORT, HTTPS_PORT} else f":{first.port}"
        return f"{scheme}://{host}{port}/v1"


class EndpointTraffic(Model):
    """Routing of requests from outside the cluster, with exact weights between revisions."""

    gateway: EndpointGateway
