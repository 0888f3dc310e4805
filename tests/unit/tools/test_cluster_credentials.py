# SPDX-License-Identifier: Apache-2.0
"""Certificates and kubeconfigs of a cluster."""

from base64 import b64decode
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from tools.cluster.commands import ClusterError
from tools.cluster.control_plane_commands import ApiEndpoint
from tools.cluster.credentials import create_client, create_credentials
from tools.cluster.layout import LOOPBACK, Layout

ENDPOINT = ApiEndpoint(LOOPBACK, 20000)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout("unit", tmp_path)
    create_credentials(layout, ENDPOINT)
    return layout


def verify_server(layout: Layout, name: str, subject: x509.verification.Subject) -> None:
    authority = x509.load_pem_x509_certificate((layout.pki / "ca.crt").read_bytes())
    certificate = x509.load_pem_x509_certificate((layout.pki / f"{name}.crt").read_bytes())
    PolicyBuilder().store(Store([authority])).build_server_verifier(subject).verify(certificate, [])


def user_of(kubeconfig: Path) -> tuple[str, list[str]]:
    """Common name and organizations, which Kubernetes uses as user and groups."""
    user = yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]
    subject = x509.load_pem_x509_certificate(b64decode(user["client-certificate-data"])).subject
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    groups = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(names[0].value), [str(group.value) for group in groups]


def test_the_api_server_is_trusted_by_address_and_by_name(layout: Layout) -> None:
    verify_server(layout, "kube-apiserver", x509.IPAddress(IPv4Address("127.0.0.1")))
    verify_server(layout, "kube-apiserver", x509.IPAddress(IPv4Address("10.96.0.1")))
    verify_server(layout, "kube-apiserver", x509.DNSName("kubernetes.default.svc"))


def test_the_api_server_is_not_trusted_under_another_name(layout: Layout) -> None:
    with pytest.raises(x509.verification.VerificationError):
        verify_server(layout, "kube-apiserver", x509.DNSName("example.test"))


def test_the_kubelet_speaks_as_its_node(layout: Layout) -> None:
    assert user_of(layout.config / "kubelet.kubeconfig") == ("system:node:unit-node", ["system:nodes"])


def test_a_client_is_an_administrator_with_a_name_of_its_own(layout: Layout) -> None:
    assert user_of(create_client(layout, "operator-a")) == ("operator-a", ["system:masters"])


def test_a_client_speaks_to_the_same_server_as_the_administrator(layout: Layout) -> None:
    document = yaml.safe_load(create_client(layout, "operator-a").read_text())
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:20000"


@pytest.mark.parametrize("name", ["", "../admin", "A", "x" * 64])
def test_a_client_name_that_cannot_be_a_file_is_refused(layout: Layout, name: str) -> None:
    with pytest.raises(ClusterError, match="client name"):
        create_client(layout, name)


def test_a_client_of_a_cluster_that_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="start it with `up`"):
        create_client(Layout("unit", tmp_path), "operator-a")


def test_private_files_are_readable_by_their_owner_only(layout: Layout) -> None:
    for path in [*layout.pki.glob("*.key"), layout.kubeconfig, *layout.config.glob("*.kubeconfig")]:
        assert path.stat().st_mode & 0o077 == 0, path
