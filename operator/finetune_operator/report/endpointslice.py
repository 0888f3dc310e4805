# SPDX-License-Identifier: Apache-2.0
"""EndpointSlice that routes the report Service, which has no selector, to the active process."""

import ipaddress
from typing import Final

from finetune_operator.engine.resources import ENDPOINT_SLICE
from finetune_operator.plan import Manifest
from finetune_operator.report.certificate import Certificate, host_of
from finetune_trainer.contract.references import ReportTarget

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
