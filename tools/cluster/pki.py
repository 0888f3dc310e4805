# SPDX-License-Identifier: Apache-2.0
"""The certificate authority of a cluster, and the certificates that it signs."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME: Final = timedelta(days=3650)


@dataclass(frozen=True)
class ClientIdentity:
    """A certificate and its private key in PEM format."""

    certificate: bytes
    key: bytes


class Authority:
    """A certificate authority with the files ca.crt and ca.key in `directory`."""

    def __init__(self, directory: Path) -> None:
        """Open an authority that `create` made."""
        self.directory = directory
        self.certificate = (directory / "ca.crt").read_bytes()
        self._issuer = x509.load_pem_x509_certificate(self.certificate)
        key = load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{directory / 'ca.key'} does not contain an elliptic curve key")
        self._key = key

    @classmethod
    def create(cls, directory: Path, common_name: str) -> "Authority":
        """Create an authority in `directory`, and a key pair for service account tokens (sa.key, sa.pub)."""
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(directory / "ca.crt", certificate.public_bytes(Encoding.PEM))
        _write(directory / "ca.key", _pem(key))
        # RSA, because every client supports RS256 tokens.
        tokens = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        _write(directory / "sa.key", _pem(tokens))
        _write(
            directory / "sa.pub",
            tokens.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        )
        return cls(directory)

    def issue(
        self, common_name: str, organizations: Iterable[str] = (), hosts: Iterable[str] = ()
    ) -> ClientIdentity:
        """Issue a certificate for client and server use; `hosts` are DNS names or IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
        subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(subject, self._issuer.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        names = [_general_name(host) for host in hosts]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return ClientIdentity(certificate.public_bytes(Encoding.PEM), _pem(key))

    def write(self, file_name: str, identity: ClientIdentity) -> None:
        """Write `identity` as <file_name>.crt and <file_name>.key to the authority's folder."""
        _write(self.directory / f"{file_name}.crt", identity.certificate)
        _write(self.directory / f"{file_name}.key", identity.key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _LIFETIME)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
