# SPDX-License-Identifier: Apache-2.0
"""The list of what a release pushed, and its tags, which make it a release."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tools.bootstrap.uv import ROOT
from tools.images.buildah import ImageError
from tools.release.artifact import Artifact
from tools.release.registry import Registry
from tools.release.verification import require_statements, verify

FOLDER: Final = ROOT / "build" / "release"
LIST: Final = "release.json"
"""Name of the list in the folder of a release."""


def write_list(
    folder: Path, released: Mapping[Artifact, Sequence[str]], version: str, commit: str, public: str | None
) -> None:
    """Write the list of the artifacts to a folder.

    Args:
        folder: folder of the release.
        released: the predicate types of the statements about each artifact.
        version: version of the release.
        commit: commit of the release.
        public: public key in PEM form; None if another program signs the statements.
    """
    listed = [
        {
            "name": each.name,
            "repository": each.repository,
            "tags": each.tags,
            "digest": each.digest,
            "statements": predicate_types,
        }
        for each, predicate_types in released.items()
    ]
    document = {"version": version, "commit": commit, "publicKey": public, "artifacts": listed}
    (folder / LIST).write_text(json.dumps(document, indent=2) + "\n")


def tag_release(registry: Registry, folder: Path = FOLDER, *, is_trial: bool = False) -> list[Artifact]:
    """Add their tags to the listed artifacts, whose statements must all be in the registry.

    Signatures with the key of the release are verified. If another program has signed, that program verifies
    its signatures. Can be repeated. Returns the artifacts.

    Args:
        registry: where the artifacts are.
        folder: where the list is.
        is_trial: accept artifacts that nothing has signed, and tags that move from other artifacts.

    Raises:
        ImageError: the list or a statement is missing, or a tag exists.
    """
    file = folder / LIST
    document = _read_list(file)
    public: str | None = document["publicKey"]
    released = dict(_artifact(registry, each, file) for each in document["artifacts"])
    for artifact, predicate_types in released.items():
        if public is not None:
            verify(registry, artifact, predicate_types, public)
        elif not is_trial:
            require_statements(registry, artifact, predicate_types)
    for artifact in released:
        for tag in artifact.tags:
            present = registry.digest(f"{artifact.repository}:{tag}")
            if not is_trial and present not in {None, artifact.digest}:
                raise ImageError(
                    f"{artifact.repository}:{tag} exists ({present}): a version is never replaced"
                )
    for artifact in released:
        for tag in artifact.tags:
            registry.tag(artifact.reference, tag)
    return list(released)


def _read_list(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise ImageError(f"{file} does not exist: run `make release`")
    document: dict[str, Any] = json.loads(file.read_text())
    if "publicKey" not in document or not all(each.get("statements") for each in document["artifacts"]):
        raise ImageError(f"{file} does not name the statements of each artifact: run `make release` again")
    return document


def _artifact(registry: Registry, listed: Mapping[str, Any], file: Path) -> tuple[Artifact, Collection[str]]:
    """A listed artifact, and the predicate types of its statements."""
    artifact = Artifact(listed["name"], listed["repository"], tuple(listed["tags"]), listed["digest"])
    if not artifact.repository.startswith(f"{registry.prefix}/"):
        raise ImageError(f"{file} is of another IMAGE_REGISTRY: {artifact.repository}")
    return artifact, listed["statements"]
