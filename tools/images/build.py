"""From the sources to images that the cluster can run, doing only what has not been done."""

import fcntl
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tools.bootstrap.cache import cache_directory
from tools.bootstrap.uv import ROOT
from tools.images import base, bill, budget, inventory
from tools.images.archive import marker_layer
from tools.images.buildah import Buildah
from tools.images.dependencies import Dependencies, cpu_dependencies
from tools.images.errors import ImageError, SourcesChangedError
from tools.images.node import Node
from tools.images.references import TRIMMING_FILES, References, Variant, content_key, image_references

OPERATOR: Final = ROOT / "operator" / "Dockerfile"
TRAINER: Final = ROOT / "trainer_image" / "Dockerfile"
CODE: Final = "-code"
BILLS: Final = ROOT / "build" / "sbom"


class Built(NamedTuple):
    """What the present sources have become."""

    names: References
    sizes: tuple[str, ...]
    """How much of its budget each image uses, in words."""


def references(variant: Variant) -> References:
    """Names of the images of the present sources, whether they are built or not."""
    return image_references(base.base_image(Buildah()), variant)


def build(variant: Variant, *, release: bool = False) -> Built:
    """Build both images and hand them to the registry of IMAGE_REGISTRY, or to the local cluster's node.

    One process at a time; another waits and then finds the work done.

    Args:
        variant: of the trainer image.
        release: whether to refuse a base image that is not named by its digest.

    Raises:
        ImageError: a build failed, an image is too large, or there is nobody to hand the result to.
        ClusterError: the node did not take an image.
        subprocess.CalledProcessError: a tool failed; its own message is on the terminal.
    """
    if os.environ.get("KUBE_CONTEXT") and not os.environ.get("IMAGE_REGISTRY"):
        raise ImageError(
            "KUBE_CONTEXT names a cluster that does not see this machine's images: "
            "set IMAGE_REGISTRY to a registry that it pulls from"
        )
    buildah = Buildah()
    if release:
        base.require_pinned(base.base_image(buildah))
    folder = cache_directory() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        while True:
            builder = Builder(buildah, variant)
            try:
                sizes = builder.describe()
                if os.environ.get("IMAGE_REGISTRY"):
                    builder.push()
                else:
                    builder.load(Node())
            except SourcesChangedError as error:
                _say(f"{error} Again …")
            else:
                return Built(builder.names, sizes)


class Builder:
    """Builds the images of the present sources, each at most once."""

    def __init__(self, buildah: Buildah, variant: Variant) -> None:
        self._buildah = buildah
        self._variant = variant
        self._base = base.base_image(buildah)
        self.names = image_references(self._base, variant)

    def describe(self) -> tuple[str, ...]:
        """Write the bill of materials of each image that has none.

        Returns:
            How much of its budget each image uses, in words.

        Raises:
            ImageError: an image is too large.
        """
        BILLS.mkdir(parents=True, exist_ok=True)
        return (
            self._described("finetune-operator", self.names.operator, "operator.txt"),
            self._described(f"finetune-trainer-{self._variant}", self.names.trainer, "trainer.txt"),
        )

    def _described(self, title: str, image: str, pins: str) -> str:
        file, constraints = BILLS / f"{title}.cdx.json", ROOT / "constraints" / pins
        used = bill.size(file, image)
        if used is None:
            found = self._inventory(image)
            file.write_text(bill.bill_of_materials(image, self._base, found, constraints))
            used = found["bytes"]
        return budget.spent(title, used)

    def push(self) -> None:
        """Push what the Dockerfiles make; the packages of the CPU variant are copied into a layer."""
        parent = base.ensure(self._buildah, self._base)
        self._build(OPERATOR, self.names.operator, parent)
        if self._variant is Variant.CPU:
            python, packages = self._cpu_packages(parent)
            dependencies = f"localhost/{packages.folder.name}:dependencies"
            if not self._buildah.has(dependencies):
                self._buildah.add_layer(python, packages.folder, str(packages.destination), dependencies)
            self._build(TRAINER, self.names.trainer, parent, dependencies)
        else:
            self._build(TRAINER, self.names.trainer, parent)
        for name in self.names:
            _say(f"Pushing {name} …")
            self._buildah.run("push", *base.plain_http(name), name, f"docker://{name}")

    def load(self, node: Node) -> None:
        """Hand to `node` what it does not have."""
        missing = {name for name in self.names if not node.has(name)}
        if not missing:
            return
        parent = base.ensure(self._buildah, self._base)
        if self.names.operator in missing:
            self._build(OPERATOR, self.names.operator, parent)
            with self._buildah.exported(self.names.operator) as image:
                node.add(self.names.operator, image)
        if self.names.trainer not in missing:
            return
        if self._variant is Variant.CPU:
            python, packages = self._cpu_packages(parent)
            code = f"{self.names.trainer}{CODE}"
            self._build(TRAINER, code, parent, dependencies=python)
            parents = self._buildah.layers(python)
            with tempfile.TemporaryDirectory() as folder, self._buildah.exported(code) as image:
                marker = marker_layer(Path(folder) / "marker.tar", f".{packages.folder.name}")
                node.link(packages, parents, marker, supply=lambda: self._buildah.exported(python))
                node.add(self.names.trainer, image.with_layer(len(parents), marker))
        else:
            self._build(TRAINER, self.names.trainer, parent)
            with self._buildah.exported(self.names.trainer) as image:
                node.add(self.names.trainer, image)

    def _inventory(self, image: str) -> bill.Inventory:
        """What is in the image, which is built for that if need be."""
        parent = base.ensure(self._buildah, self._base)
        packages = None
        if image == self.names.operator:
            self._build(OPERATOR, image, parent)
        elif self._variant is Variant.CPU:
            # Its packages join it when it is handed out.
            python, packages = self._cpu_packages(parent)
            image += CODE
            self._build(TRAINER, image, parent, dependencies=python)
        else:
            self._build(TRAINER, image, parent)
        volume = (packages.folder, str(packages.destination)) if packages else None
        source = Path(inventory.__file__).read_text()
        found: bill.Inventory = json.loads(
            self._buildah.output(image, "python3", "-c", source, volume=volume)
        )
        return found

    def _cpu_packages(self, parent: str) -> tuple[str, Dependencies]:
        """The image of the trainer's stage `python`, and the packages that belong upon it."""
        python = f"localhost/finetune-trainer-python:{content_key(('trainer_image/Dockerfile',), self._base)}"
        if not self._buildah.has(python):
            self._buildah.build(TRAINER, python, base=parent, target="python")
        return python, cpu_dependencies(self._buildah, python, content_key(TRIMMING_FILES, self._base))

    def _build(self, dockerfile: Path, name: str, parent: str, dependencies: str | None = None) -> None:
        if not self._buildah.has(name):
            _say(f"Building {name} …")
            self._buildah.build(dockerfile, name, base=parent, dependencies=dependencies)
            if name.removesuffix(CODE) not in image_references(self._base, self._variant):
                self._buildah.run("rmi", name)
                raise SourcesChangedError("The sources changed while they were built.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
