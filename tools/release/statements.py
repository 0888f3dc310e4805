# SPDX-License-Identifier: Apache-2.0
"""Statements about artifacts, in the format of in-toto: signature, bill of materials, provenance."""

import json
from datetime import datetime
from typing import Any, Final, NamedTuple

from tools.release.artifact import Artifact

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
