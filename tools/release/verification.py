# SPDX-License-Identifier: Apache-2.0
"""Verify that a registry has the statements about an artifact, as a client does."""

import base64
import json
import subprocess
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.cluster.toolchain import program
from tools.images.buildah import ImageError
from tools.release.artifact import Artifact
from tools.release.registry import Registry
from tools.release.signing import BUNDLE


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
