# SPDX-License-Identifier: Apache-2.0
"""Where a store has artifacts, derived folders and runs: keys relative to the store, with `/`."""

from typing import Final, Literal

from pydantic.dataclasses import dataclass

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.failure import StageFailure

ArtifactKind = Literal["datasets", "models", "checkpoints"]

SOURCES: Final = "models/by-source"
"""One file per source of a downloaded base model: the artifact that it became."""
DOWNLOADS: Final = "downloads"
"""One note per source of a base model: the run that is downloading it."""
DERIVED: Final = "derived"
"""Folder of an artifact for what was derived from it. The artifact's manifest does not list it."""
BY_NAME: Final = "by-name"
"""One file per name of a derived folder: its digest."""


@dataclass(frozen=True, slots=True)
class DerivedRef:
    """A complete folder that was derived from an artifact. Raises ValidationError for another digest."""

    of: ArtifactRef
    digest: Digest


StoredRef = ArtifactRef | DerivedRef
Place = ArtifactKind | ArtifactRef
"""Where to publish a folder: as an artifact of a kind, or as derived from an artifact."""


def derived_or_own(artifact: ArtifactRef, derived: Digest | None) -> StoredRef:
    """Return the reference to a folder that is derived from an artifact, or to the artifact itself."""
    return artifact if derived is None else DerivedRef(artifact, derived)


def ref_to(place: Place, digest: Digest) -> StoredRef:
    """Return the reference to a folder that is published at `place`."""
    if isinstance(place, ArtifactRef):
        return DerivedRef(place, digest)
    return ArtifactRef(kind=place, digest=digest)


def key_of(ref: StoredRef) -> str:
    """Return the folder of an artifact or of what was derived from it."""
    parent = ref.kind if isinstance(ref, ArtifactRef) else f"{key_of(ref.of)}/{DERIVED}"
    return f"{parent}/{ref.digest.removeprefix('sha256:')}"


def name_key(of: ArtifactRef, name: str) -> str:
    """Return the file with the digest of the derived folder `name`."""
    return f"{key_of(of)}/{DERIVED}/{BY_NAME}/{name}"


def run_key(run: str, *stage: str) -> str:
    """Return the folder of a run or stage. Raises StageFailure (INVALID_CONFIG)."""
    for field, value in zip(("run", "stage"), (run, *stage), strict=False):
        if value in ("", ".", "..") or "/" in value or "\0" in value:
            raise StageFailure(FailureReason.INVALID_CONFIG, f"{field}: {value!r} is not a folder name")
    return "/".join(("runs", run, *stage))
