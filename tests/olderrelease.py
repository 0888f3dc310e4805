# SPDX-License-Identifier: Apache-2.0
"""The previous release, from the repository's history."""

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tools.images.base import base_image
from tools.images.buildah import Buildah
from tools.images.nodeimages import Node
from tools.images.tags import content_key

COMMIT: Final = "ec8a5a2"
ROOT: Final = Path(__file__).parents[1]
DOCKERFILE: Final = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
USER 0:0
RUN rm -rf /app/*
COPY operator/finetune_operator /app/finetune_operator
COPY trainer_image/finetune_trainer/__init__.py /app/finetune_trainer/
COPY trainer_image/finetune_trainer/contract.py /app/finetune_trainer/
USER 65532:65532
ENTRYPOINT ["python3", "-m", "finetune_operator"]
"""
"""Replaces the operator in the image of this release by that of the previous one."""


def older_release(folder: Path) -> Path:
    """Unpack the sources of the previous release into `folder`; skips the test if the history lacks them."""
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run([*git, "cat-file", "-e", f"{COMMIT}^{{commit}}"], capture_output=True, check=False)
    if known.returncode != 0:
        pytest.skip(f"commit {COMMIT} is not in the history of this clone")
    archive = subprocess.run(
        [*git, "archive", COMMIT, "operator", "trainer_image", "constraints", "charts"],
        capture_output=True,
        check=True,
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def python_path(release: Path) -> str:
    """PYTHONPATH with which Python imports the packages of the release in the folder `release`."""
    return f"{release / 'operator'}:{release / 'trainer_image'}"


def operator_image(release: Path, present: str) -> str:
    """Build the operator image of the previous release, load it into the local node, and return its name.

    Args:
        release: folder with the sources.
        present: operator image of this release. Both have the same pinned packages, so the build installs
            nothing and needs no network.
    """
    pins = "constraints/operator.txt"
    assert (release / pins).read_text() == (ROOT / pins).read_text(), "the older release has other packages"
    buildah, node = Buildah(), Node()
    image = f"localhost/finetune-operator:{COMMIT}-{content_key((pins,), base_image(buildah), DOCKERFILE)}"
    if not node.has(image):
        if not buildah.has(image):
            dockerfile = release / "Dockerfile"
            dockerfile.write_text(DOCKERFILE)
            buildah.build(dockerfile, image, base=present, context=release)
        with buildah.exported(image) as exported:
            node.add(image, exported)
    return image
