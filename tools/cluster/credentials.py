# SPDX-License-Identifier: Apache-2.0
"""The certificate authority of a cluster, and the certificates and kubeconfigs of its parts and clients."""

import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import yaml
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

from tools.cluster.commands import ClusterError
from tools.cluster.control_plane_commands import ApiEndpoint
from tools.cluster.layout import KUBERNETES_ADDRESS, LOOPBACK, NODE_ADDRESS, Layout

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


def write_kubeconfig(
    path: Path, context: str, server: str, authority: Authority, identity: ClientIdentity
) -> None:
    """Write the kubeconfig of one user, readable only by its owner; `server` is a URL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cluster = {"server": server, "certificate-authority-data": b64encode(authority.certificate).decode()}
    user = {
        "client-certificate-data": b64encode(identity.certificate).decode(),
        "client-key-data": b64encode(identity.key).decode(),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": context, "cluster": cluster}],
        "users": [{"name": context, "user": user}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "current-context": context,
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def server_of(path: Path) -> str:
    """URL of the API server in a kubeconfig of `write_kubeconfig`."""
    url: str = yaml.safe_load(path.read_text())["clusters"][0]["cluster"]["server"]
    return url


_ADMINISTRATORS: Final = "system:masters"
_API_SERVER_NAMES: Final = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
_CLIENT_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62})")


def create_credentials(layout: Layout, endpoint: ApiEndpoint) -> None:
    """Create a certificate authority, and the certificates and kubeconfigs of all parts of the cluster."""
    authority = Authority.create(layout.pki, f"{layout.name}-ca")
    addresses = (str(endpoint.address), str(LOOPBACK), str(KUBERNETES_ADDRESS))
    authority.write("etcd", authority.issue("etcd", hosts=("localhost", str(LOOPBACK))))
    authority.write(
        "kube-apiserver", authority.issue("kube-apiserver", hosts=(*_API_SERVER_NAMES, *addresses))
    )
    authority.write("front-proxy-client", authority.issue("front-proxy-client"))
    authority.write("kubelet-client", authority.issue("kube-apiserver-kubelet-client", (_ADMINISTRATORS,)))
    node = f"system:node:{layout.node_name}"
    authority.write(
        "kubelet", authority.issue(node, ("system:nodes",), (layout.node_name, str(NODE_ADDRESS)))
    )
    users: dict[str, tuple[str, tuple[str, ...]]] = {
        "kube-controller-manager": ("system:kube-controller-manager", ()),
        "kube-scheduler": ("system:kube-scheduler", ()),
        "kube-proxy": ("system:kube-proxy", ()),
        "kubelet": (node, ("system:nodes",)),
        "provisioner": ("provisioner", (_ADMINISTRATORS,)),
    }
    for name, (user, groups) in users.items():
        write_kubeconfig(
            layout.config / f"{name}.kubeconfig", name, endpoint.url, authority, authority.issue(user, groups)
        )
    administrator = authority.issue("admin", (_ADMINISTRATORS,))
    write_kubeconfig(layout.kubeconfig, layout.name, endpoint.url, authority, administrator)


def create_client(layout: Layout, name: str, *, administrator: bool = True) -> Path:
    """Write the kubeconfig of a user `name`, and return its path.

    Raises:
        ClusterError: the name is not valid as a file name, or the cluster does not run.
    """
    if not _CLIENT_NAME.fullmatch(name):
        raise ClusterError(f"client name {name!r}: use up to 63 lower-case letters, digits, dots and hyphens")
    if not layout.kubeconfig.exists():
        raise ClusterError(f"the cluster {layout.name} does not run: start it with `up`")
    path = layout.clients / f"{name}.kubeconfig"
    authority = Authority(layout.pki)
    identity = authority.issue(name, (_ADMINISTRATORS,) if administrator else ())
    write_kubeconfig(path, layout.name, server_of(layout.kubeconfig), authority, identity)
    return path
