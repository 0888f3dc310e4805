# SPDX-License-Identifier: Apache-2.0
"""The report endpoint's certificate works for TLS."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from finetune_operator.engine.http_server import Certificate, make_certificate

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return make_certificate("report", "finetune-system", datetime.now(UTC))


def shake_hands(certificate: Certificate, ca: str, host: str) -> None:
    """Connect as a pod does: with the CA of the config and the Service's name."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with certificate.context().wrap_socket(theirs, server_side=True) as server:
                server.send(b"x")
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client = ssl.create_default_context(cadata=ca)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        with client.wrap_socket(ours, server_hostname=host) as connection:
            assert connection.recv(1) == b"x"
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize(
    "host",
    ["report.finetune-system.svc", "report.finetune-system.svc.cluster.local", "report.finetune-system"],
)
def test_a_pod_that_knows_the_ca_trusts_the_services_names(certificate: Certificate, host: str) -> None:
    shake_hands(certificate, certificate.ca, host)


def test_another_name_is_not_trusted(certificate: Certificate) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(certificate, certificate.ca, "report.elsewhere.svc")


def test_another_ca_is_not_trusted(certificate: Certificate) -> None:
    other = make_certificate("report", "finetune-system", datetime.now(UTC))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(certificate, other.ca, "report.finetune-system.svc")


def test_it_lasts_ten_years() -> None:
    made = make_certificate("report", "finetune-system", NOW)
    for pem in (made.ca, made.certificate):
        parsed = x509.load_pem_x509_certificate(pem.encode())
        assert parsed.not_valid_after_utc == NOW + timedelta(days=3650)
        assert parsed.not_valid_before_utc <= NOW
