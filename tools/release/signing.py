# SPDX-License-Identifier: Apache-2.0
"""Sign statements with a key, as bundles of Sigstore, which cosign and sigstore-go verify."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from tools.images.buildah import ImageError

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
