# SPDX-License-Identifier: Apache-2.0
"""An HTTP server of this process: its port and, for HTTPS, its certificate.

A certificate can be created once, in a Secret of the process's namespace.
"""

import base64
import ssl
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import AlreadyExists, Unavailable
from finetune_operator.engine.resources import SECRET

LIFETIME: Final = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Certificate, key and CA as PEM texts. The CA's key is not stored."""

    ca: str
    certificate: str
    key: str

    def context(self) -> ssl.SSLContext:
        """TLS context of a server with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Use this certificate for new connections of the context."""
        # The standard library loads certificates only from files.
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
            certificate.write_text(self.certificate)
            key.touch(mode=0o600)
            key.write_text(self.key)
            context.load_cert_chain(certificate, key)


def host_of(service: str, namespace: str) -> str:
    """Host name of the endpoint for pods."""
    return f"{service}.{namespace}.svc"


def make_certificate(service: str, namespace: str, now: datetime) -> Certificate:
    """Create a certificate for the Service's names, valid for ten years, from a new CA."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{service} CA")])
    start, end = now - timedelta(hours=1), now + LIFETIME
    ca = (
        x509.CertificateBuilder(
            ca_name, ca_name, ca_key.public_key(), x509.random_serial_number(), start, end
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(_usage(ca=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    host = host_of(service, namespace)
    names = [x509.DNSName(name) for name in (host, f"{host}.cluster.local", f"{service}.{namespace}")]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    certificate = (
        x509.CertificateBuilder(ca_name, name, key.public_key(), x509.random_serial_number(), start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return Certificate(
        ca=ca.public_bytes(pem).decode(),
        certificate=certificate.public_bytes(pem).decode(),
        key=key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


async def ensure_certificate(
    cluster: KubernetesClient, service: str, namespace: str, now: datetime
) -> Certificate:
    """The certificate in the Secret `<service>-tls`. It is created if missing, and never overwritten.

    Raises:
        Unavailable: the Secret was deleted between two requests; try again.
        ValueError: the Secret lacks keys; the message says what to do.
    """
    name = f"{service}-tls"
    existing = await cluster.get(SECRET, namespace, name)
    if existing is None:
        made = make_certificate(service, namespace, now)
        try:
            await cluster.create(
                {
                    "apiVersion": SECRET.api_version,
                    "kind": SECRET.kind,
                    "metadata": {"name": name, "namespace": namespace},
                    "type": "kubernetes.io/tls",
                    "data": {
                        "ca.crt": _encoded(made.ca),
                        "tls.crt": _encoded(made.certificate),
                        "tls.key": _encoded(made.key),
                    },
                }
            )
        except AlreadyExists:
            existing = await cluster.get(SECRET, namespace, name)
            if existing is None:
                raise Unavailable(f"Secret {name} was deleted right after its creation") from None
        else:
            return made
    data = existing.get("data") or {}
    missing = [key for key in ("ca.crt", "tls.crt", "tls.key") if key not in data]
    if missing:
        raise ValueError(
            f"Secret {namespace}/{name} has no {', '.join(missing)}: delete it, and the operator creates a"
            " new one"
        )
    return Certificate(*(base64.b64decode(data[key]).decode() for key in ("ca.crt", "tls.crt", "tls.key")))


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class PortListener:
    """A server that listens on one port, until it is stopped."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None

    async def listen(self, app: web.Application, port: int, context: ssl.SSLContext | None = None) -> None:
        """Serve `app`; without `context` as plain HTTP."""
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, port=port, ssl_context=context).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
