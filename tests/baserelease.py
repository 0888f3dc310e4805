# SPDX-License-Identifier: Apache-2.0
"""The release that upgrade, rollback and skew tests start from: the tree of the commit in `zerocommit`.

While the file names no commit, the present tree has both roles.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tools.bootstrap.uv import Uv, cache_directory
from tools.images.base import base_image, ensure
from tools.images.bill import pinned_hashes
from tools.images.buildah import Buildah
from tools.images.node_images import Node
from tools.images.tags import OPERATOR_FILES, content_key

FILE: Final = Path(__file__).with_name("zerocommit")
PRESENT: Final = "present"
ROOT: Final = Path(__file__).parents[1]
PARTS: Final = ("operator", "trainer_image", "constraints", "charts", "crds")
OPERATOR_PINS: Final = "constraints/operator.txt"
PROCESS_PINS: Final = (OPERATOR_PINS, "constraints/trainer.txt")
"""Packages of the processes that tests start from the tree."""
DOCKERFILE: Final = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
USER 0:0
RUN rm -rf /app/*
COPY operator/finetune_operator /app/finetune_operator
COPY trainer_image/finetune_trainer/__init__.py /app/finetune_trainer/
COPY trainer_image/finetune_trainer/contract /app/finetune_trainer/contract
USER 65532:65532
ENTRYPOINT ["env", "--block-signal=TERM,INT", "python3", "-m", "finetune_operator"]
"""
"""Replaces the operator in the image of the present sources by that of the base release."""


def named_commit(text: str) -> str:
    """The commit, or `PRESENT`: the only line that is not a comment."""
    (line,) = (each for each in map(str.strip, text.splitlines()) if each and not each.startswith("#"))
    return line


class BaseRelease:
    """The tree of the base release in a folder."""

    def __init__(self, folder: Path, commit: str | None = None) -> None:
        """Unpack the tree of `commit`, or of the one in `zerocommit`, into `folder`.

        Skips the test if this clone lacks the commit.
        """
        self.folder = folder
        self.commit = commit or named_commit(FILE.read_text())
        folder.mkdir(parents=True, exist_ok=True)
        if self.commit == PRESENT:
            names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS)
            existing = [name for name in names.split(b"\0") if name and (ROOT / name.decode()).exists()]
            packed = ["tar", "--create", f"--directory={ROOT}", "--null", "--files-from=-"]
            archive = subprocess.run(packed, input=b"\0".join(existing), capture_output=True, check=True)
            tree = archive.stdout
        else:
            known = ["git", "-C", str(ROOT), "cat-file", "-e", f"{self.commit}^{{commit}}"]
            if subprocess.run(known, capture_output=True, check=False).returncode != 0:
                pytest.skip(f"commit {self.commit} is not in the history of this clone")
            tree = _git("archive", self.commit, *PARTS)
        subprocess.run(["tar", "--extract", f"--directory={folder}"], input=tree, check=True)

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables with which Python imports the packages of the tree."""
        return {"PYTHONPATH": f"{self.folder / 'operator'}:{self.folder / 'trainer_image'}"}

    @cached_property
    def python(self) -> Path:
        """Interpreter with the packages that the tree pins: the tests' own, unless it lacks one."""
        if all(map(self.has_present_pins, PROCESS_PINS)):
            return Path(sys.executable)
        home = cache_directory() / "base-release" / self.commit
        done = home / "installed"
        if not done.exists():
            uv = Uv()
            uv.run("venv", "--quiet", "--clear", "--python", sys.executable, home)
            # The pins override requirements of packages, so they are installed without resolving them again.
            pins = [self.folder / each for each in PROCESS_PINS]
            uv.run("pip", "sync", "--quiet", "--require-hashes", *pins, VIRTUAL_ENV=str(home))
            done.touch()
        return home / "bin" / "python"

    @cached_property
    def contract(self) -> int:
        """Version of the contract that the tree speaks."""
        code = "from finetune_trainer.contract.base import CONTRACT_VERSION; print(CONTRACT_VERSION)"
        # The contract needs pydantic only, so this does not install the packages that the tree pins.
        command = [sys.executable, "-c", code]
        return int(subprocess.run(command, env={**self.environment}, capture_output=True, check=True).stdout)

    def chart(self, name: str) -> Path:
        """Folder of a chart of the tree."""
        return self.folder / "charts" / name

    def remove_field(self, kind: str, *path: str) -> None:
        """Remove a field from the chart's definition of `kind` (plural), as if the tree were older."""
        file = self.chart("finetune-operator-crds") / "definitions" / f"{kind}.yaml"
        definition: dict[str, Any] = yaml.safe_load(file.read_text())
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for name in path[:-1]:
            schema = schema["properties"][name]
        del schema["properties"][path[-1]]
        file.write_text(json.dumps(definition))

    def operator_image(self, present: str) -> str:
        """Build the tree's operator image, load it into the local node, and return its name.

        Its name differs from `present`, the operator image of the present sources, also if its content does
        not. If that has every package that the tree pins, the build installs nothing and needs no network.
        """
        buildah, node = Buildah(), Node()
        parent = base_image(buildah)
        is_complete = self.has_present_pins(OPERATOR_PINS)
        dockerfile = self.folder / "operator" / "Dockerfile"
        if is_complete:
            dockerfile = self.folder / "Dockerfile"
            dockerfile.write_text(DOCKERFILE)
        sources = OPERATOR_FILES if self.commit == PRESENT else (OPERATOR_PINS,)
        key = content_key(sources, parent, self.commit, dockerfile.read_text())
        image = f"localhost/finetune-operator:base-{key}"
        if not node.has(image):
            if not buildah.has(image):
                base = present if is_complete else ensure(buildah, parent)
                buildah.build(dockerfile, image, base=base, context=self.folder)
            with buildah.exported(image) as exported:
                node.add(image, exported)
        return image

    def has_present_pins(self, file: str) -> bool:
        """Whether the present sources have each pin of `file` of the tree, with the same hashes."""
        return pinned_hashes(self.folder / file).items() <= pinned_hashes(ROOT / file).items()


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout
