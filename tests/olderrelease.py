"""The release before this one, from the repository's own history."""

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tools.images.base import base_image
from tools.images.buildah import Buildah
from tools.images.node import Node
from tools.images.references import content_key

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
"""The release's operator, started as it was, in place of that of another image."""


def older_release(folder: Path) -> Path:
    """What it is made of, in `folder`. Skips where the history does not have it."""
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
    """With it Python imports the release's packages, and not those of this one."""
    return f"{release / 'operator'}:{release / 'trainer_image'}"


def operator_image(release: Path, present: str) -> str:
    """Name of the image of its operator, which the local cluster's node has then.

    Args:
        release: what it is made of.
        present: the image of this release. Both have the same pinned packages, so that nothing is installed,
            which would take a network.
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
