# SPDX-License-Identifier: Apache-2.0
"""The list of what a release pushed, and its tags, which make it a release."""

import json
from collections.abc import Sequence
from typing import Final

from tools.bootstrap.uv import ROOT
from tools.images.errors import ImageError
from tools.release.artifact import Artifact
from tools.release.registry import Registry
from tools.release.verification import verify

FOLDER: Final = ROOT / "build" / "release"
PUBLIC_KEY: Final = FOLDER / "release.pub"
LIST: Final = FOLDER / "release.json"


def write_list(artifacts: Sequence[Artifact], version: str, commit: str) -> None:
    """Write the list of the artifacts to build/release."""
    listed = [
        {"name": each.name, "repository": each.repository, "tags": each.tags, "digest": each.digest}
        for each in artifacts
    ]
    document = {"version": version, "commit": commit, "artifacts": listed}
    LIST.write_text(json.dumps(document, indent=2) + "\n")


def tag_release(registry: Registry, *, may_replace: bool = False) -> list[Artifact]:
    """Verify the listed artifacts in the registry if they were signed with a key, and then add their tags.

    Can be repeated. Returns the artifacts.

    Args:
        registry: where the artifacts are.
        may_replace: whether tags may move from other artifacts.

    Raises:
        ImageError: there is no list, a statement is missing, or a tag exists.
    """
    artifacts = _read_list(registry)
    if PUBLIC_KEY.exists():
        for artifact in artifacts:
            verify(registry, artifact, _predicate_types(artifact), PUBLIC_KEY.read_text())
    for artifact in artifacts:
        for tag in artifact.tags:
            present = registry.digest(f"{artifact.repository}:{tag}")
            if not may_replace and present not in {None, artifact.digest}:
                raise ImageError(
                    f"{artifact.repository}:{tag} exists ({present}): a version is never replaced"
                )
    for artifact in artifacts:
        for tag in artifact.tags:
            registry.tag(artifact.reference, tag)
    return artifacts


def _read_list(registry: Registry) -> list[Artifact]:
    if not LIST.exists():
        raise ImageError(f"{LIST} does not exist: run `make release`")
    listed = json.loads(LIST.read_text())["artifacts"]
    artifacts = [
        Artifact(each["name"], each["repository"], tuple(each["tags"]), each["digest"]) for each in listed
    ]
    for artifact in artifacts:
        if not artifact.repository.startswith(f"{registry.prefix}/"):
            raise ImageError(f"{LIST} is of another IMAGE_REGISTRY: {artifact.repository}")
    return artifacts


def _predicate_types(artifact: Artifact) -> set[str]:
    """Types of the statements about an artifact, which build/release has."""
    return {
        json.loads(file.read_text())["predicateType"]
        for file in FOLDER.glob(f"{artifact.name}.*.json")
        if not file.name.endswith(".sigstore.json")
    }
