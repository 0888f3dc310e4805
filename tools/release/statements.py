# SPDX-License-Identifier: Apache-2.0
"""Statements about artifacts in the format of in-toto: signature, bill of materials, provenance.

They are signed with a key, as bundles of Sigstore, which cosign and sigstore-go verify.
"""

import base64
import hashlib
import json
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from tools.cluster.toolchain import program
from tools.images.buildah import ImageError
from tools.release.registry import Registry


@dataclass(frozen=True)
class Artifact:
    """An image or a chart in a registry.

    Attributes:
        name: name in messages and files, such as `finetune-trainer-cpu`.
        repository: registry and repository, without tag.
        tags: its tags.
        digest: digest of its manifest.
        bill: its bill of materials; None for a chart.
        base: name of the base image; None for a chart.
    """

    name: str
    repository: str
    tags: tuple[str, ...]
    digest: str
    bill: Path | None = None
    base: str | None = None

    @property
    def reference(self) -> str:
        """Name with the digest."""
        return f"{self.repository}@{self.digest}"


BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD: Final = "application/vnd.in-toto+json"


class SigningKey:
    """A private key of the curve P-256.

    Attributes:
        public: the public key in PEM form.
    """

    def __init__(self, private: EllipticCurvePrivateKey) -> None:
        public = private.public_key()
        self._signer = CryptoSigner(private)
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self._hint = base64.b64encode(hashlib.sha256(der).digest()).decode()
        self.public = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @classmethod
    def read(cls, file: Path, password: str | None) -> "SigningKey":
        """Read a key in PEM form.

        Raises:
            ImageError: it is not such a key, or the password is wrong.
        """
        try:
            private = load_pem_private_key(file.read_bytes(), password.encode() if password else None)
        except (OSError, TypeError, ValueError) as error:
            raise ImageError(f"the key RELEASE_KEY={file} cannot be read: {error}") from error
        if not isinstance(private, EllipticCurvePrivateKey) or not isinstance(private.curve, SECP256R1):
            raise ImageError(f"RELEASE_KEY={file} is not a key of the curve P-256: create one with openssl")
        return cls(private)

    def sign(self, statement: dict[str, object]) -> str:
        """A bundle with the signed statement, as JSON."""
        envelope = Envelope(json.dumps(statement).encode(), PAYLOAD, {})
        envelope.sign(self._signer)
        document = envelope.to_dict()
        signatures = [{"sig": each["sig"]} for each in document["signatures"]]
        return json.dumps(
            {
                "mediaType": BUNDLE,
                "verificationMaterial": {"publicKey": {"hint": self._hint}},
                "dsseEnvelope": {**document, "signatures": signatures},
            }
        )


STATEMENT: Final = "https://in-toto.io/Statement/v1"
SIGNATURE: Final = "https://sigstore.dev/cosign/sign/v1"
"""Type of the statement that cosign makes for `cosign sign`."""
BILL: Final = "https://cyclonedx.org/bom"
PROVENANCE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "https://finetune.dev/release/v1"

Document = dict[str, Any]


class SourceCommit(NamedTuple):
    """The commit of a release.

    Attributes:
        commit: its hash.
        uri: where the repository is; None if it is not published.
    """

    commit: str
    uri: str | None

    @property
    def descriptor(self) -> Document:
        """A ResourceDescriptor of in-toto."""
        return {
            "name": "source",
            "digest": {"gitCommit": self.commit},
            **({"uri": self.uri} if self.uri else {}),
        }


class Build(NamedTuple):
    """How a release was built.

    Attributes:
        source: its commit.
        version: its version.
        builder: URI of what ran the build, which users trust or not.
        started: when it began.
        finished: when it ended.
        pins: SHA-256 of each file that pins dependencies, by name.
    """

    source: SourceCommit
    version: str
    builder: str
    started: datetime
    finished: datetime
    pins: dict[str, str]


def statement(artifact: Artifact, predicate_type: str, predicate: Document) -> Document:
    """A statement about one artifact."""
    algorithm, _, value = artifact.digest.partition(":")
    subject = {"name": artifact.repository, "digest": {algorithm: value}}
    return {"_type": STATEMENT, "subject": [subject], "predicateType": predicate_type, "predicate": predicate}


def statements(artifact: Artifact, build: Build) -> dict[str, Document]:
    """All statements about an artifact, by a name for files."""
    found = {
        "signature": statement(artifact, SIGNATURE, {}),
        "provenance": statement(artifact, PROVENANCE, provenance(artifact, build)),
    }
    if artifact.bill is not None:
        found["sbom"] = statement(artifact, BILL, json.loads(artifact.bill.read_text()))
    return found


def provenance(artifact: Artifact, build: Build) -> Document:
    """The predicate of SLSA: from what and by whom the artifact was built."""
    dependencies = [build.source.descriptor]
    dependencies += [{"name": name, "digest": {"sha256": digest}} for name, digest in build.pins.items()]
    if artifact.base is not None:
        name, _, digest = artifact.base.partition("@sha256:")
        dependencies.append({"name": name, **({"digest": {"sha256": digest}} if digest else {})})
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "artifact": artifact.name,
                "version": build.version,
                "source": build.source.descriptor,
            },
            "internalParameters": {},
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {"id": build.builder},
            "metadata": {"startedOn": _time(build.started), "finishedOn": _time(build.finished)},
        },
    }


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%SZ}"


def verify(registry: Registry, artifact: Artifact, predicate_types: Collection[str], public: str) -> None:
    """Fetch the bundles of an artifact from the registry, and verify them with Sigstore's library.

    Args:
        registry: where the artifact is.
        artifact: the artifact.
        predicate_types: types of the statements that it must have.
        public: public key in PEM form.

    Raises:
        ImageError: a statement is missing, or its signature or digest is another one.
    """
    verified, refused = set(), ""
    with TemporaryDirectory() as folder:
        key, bundle = Path(folder) / "release.pub", Path(folder) / "bundle.json"
        key.write_text(public)
        for content in registry.attached(artifact.reference, BUNDLE):
            bundle.write_text(content)
            done = subprocess.run(
                [program("verify-bundle"), "-key", key, "-digest", artifact.digest, bundle],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                refused = done.stderr.strip()
            else:
                verified.add(json.loads(done.stdout)["predicateType"])
    if missing := set(predicate_types) - verified:
        reason = f" ({refused})" if refused else ""
        raise ImageError(
            f"{_nothing_is_tagged(artifact, 'valid', missing)}{reason}; "
            "check that the registry keeps attached artifacts, and run `make release` again"
        )


def require_statements(registry: Registry, artifact: Artifact, predicate_types: Collection[str]) -> None:
    """Require bundles with all statements about an artifact, without verifying their signatures.

    Args:
        registry: where the artifact is.
        artifact: the artifact.
        predicate_types: types of the statements that it must have.

    Raises:
        ImageError: a statement is missing, or is about another digest.
    """
    found = set()
    for content in registry.attached(artifact.reference, BUNDLE):
        envelope = json.loads(content).get("dsseEnvelope")
        if envelope is None:
            continue
        statement = json.loads(base64.b64decode(envelope["payload"]))
        digests = {":".join(each) for subject in statement["subject"] for each in subject["digest"].items()}
        if artifact.digest in digests:
            found.add(statement["predicateType"])
    if missing := set(predicate_types) - found:
        raise ImageError(
            f"{_nothing_is_tagged(artifact, 'signed', missing)}; run `make release` with RELEASE_KEY, "
            "or sign the statements in build/release with another program, such as cosign"
        )


def _nothing_is_tagged(artifact: Artifact, kind: str, missing: Collection[str]) -> str:
    types = ", ".join(sorted(missing))
    return f"nothing is tagged: in the registry {artifact.reference} has no {kind} statement {types}"
