# SPDX-License-Identifier: Apache-2.0
"""Build the images from the sources and deliver them, with only the missing steps."""

import fcntl
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from tools.bootstrap.uv import ROOT, cache_directory
from tools.images import base, bill, inventory
from tools.images.buildah import Buildah, ImageError, SourcesChangedError
from tools.images.cpu_packages import Dependencies, cpu_dependencies
from tools.images.node_images import Node
from tools.images.tags import LOCAL, TRIMMING_FILES, References, Variant, content_key, image_references

OPERATOR: Final = ROOT / "operator" / "Dockerfile"
TRAINER: Final = ROOT / "trainer_image" / "Dockerfile"
CODE: Final = "-code"
BILLS: Final = ROOT / "build" / "sbom"


class Built(NamedTuple):
    """The images of the present sources.

    Attributes:
        names: their names.
        base: name of their base image.
        sizes: size and budget of each image as text.
    """

    names: References
    base: str
    sizes: tuple[str, ...]


def references(variant: Variant) -> References:
    """Names of the images of the present sources, built or not."""
    return image_references(base.base_image(Buildah()), variant)


def build(variant: Variant) -> Built:
    """Build both images, and push them to IMAGE_REGISTRY or load them into the local cluster's node.

    A second process waits for the first one and then finds the images.

    Args:
        variant: variant of the trainer image.

    Raises:
        ImageError: a build failed, an image is too large, or the cluster does not run.
        ClusterError: the node did not accept an image.
        subprocess.CalledProcessError: a tool failed; its message is on the terminal.
    """
    if os.environ.get("KUBE_CONTEXT") and not os.environ.get("IMAGE_REGISTRY"):
        raise ImageError(
            "KUBE_CONTEXT selects a cluster that cannot use images of this machine: "
            "set IMAGE_REGISTRY to a registry from which it can pull"
        )

    def deliver(builder: Builder) -> None:
        if os.environ.get("IMAGE_REGISTRY"):
            builder.push()
        else:
            builder.load(Node())

    return _build(variant, deliver)


def build_complete(variant: Variant) -> Built:
    """Build both images completely into buildah's store, with local names, and deliver them nowhere.

    Raises:
        ImageError: a build failed, or an image is too large.
        subprocess.CalledProcessError: a tool failed; its message is on the terminal.
    """
    return _build(variant, Builder.complete, registry=LOCAL)


def bill_file(title: str) -> Path:
    """File of the bill of materials of the image `title`, which is a key of `budget.BUDGETS`."""
    return BILLS / f"{title}.cdx.json"


def _build(variant: Variant, deliver: Callable[["Builder"], None], *, registry: str | None = None) -> Built:
    """Describe and deliver the images; a second process waits for the first one."""
    buildah = Buildah()
    folder = cache_directory() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        while True:
            builder = Builder(buildah, variant, registry)
            try:
                sizes = builder.describe()
                deliver(builder)
            except SourcesChangedError as error:
                _log(f"{error} Building again …")
            else:
                return Built(builder.names, builder.base, sizes)


class Builder:
    """Builds the images of the present sources, each once."""

    def __init__(self, buildah: Buildah, variant: Variant, registry: str | None = None) -> None:
        self._buildah = buildah
        self._variant = variant
        self._registry = registry
        self.base = base.base_image(buildah)
        self.names = image_references(self.base, variant, registry)

    def describe(self) -> tuple[str, ...]:
        """Write the missing bills of materials.

        Returns:
            Size and budget of each image as text.

        Raises:
            ImageError: an image is too large.
        """
        BILLS.mkdir(parents=True, exist_ok=True)
        return (
            self._described("finetune-operator", self.names.operator, "operator.txt"),
            self._described(f"finetune-trainer-{self._variant}", self.names.trainer, "trainer.txt"),
        )

    def _described(self, title: str, image: str, pins: str) -> str:
        file, constraints = bill_file(title), ROOT / "constraints" / pins
        size = bill.size(file, image)
        if size is None:
            found = self._inventory(image)
            file.write_text(bill.bill_of_materials(image, self.base, found, constraints))
            size = found["bytes"]
        return bill.check_budget(title, size)

    def push(self) -> None:
        """Push the images."""
        self.complete()
        for name in self.names:
            _log(f"Pushing {name} …")
            self._buildah.push(name, name)

    def complete(self) -> None:
        """Build the images completely; the packages of the CPU variant are copied into a layer."""
        parent = base.ensure(self._buildah, self.base)
        self._build(OPERATOR, self.names.operator, parent)
        if self._variant is Variant.CPU:
            python, packages = self._cpu_packages(parent)
            dependencies = f"localhost/{packages.folder.name}:dependencies"
            if not self._buildah.has(dependencies):
                self._buildah.add_layer(python, packages.folder, str(packages.destination), dependencies)
            self._build(TRAINER, self.names.trainer, parent, dependencies)
        else:
            self._build(TRAINER, self.names.trainer, parent)

    def load(self, node: Node) -> None:
        """Load the images that `node` does not have."""
        missing = {name for name in self.names if not node.has(name)}
        if not missing:
            return
        parent = base.ensure(self._buildah, self.base)
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
            with self._buildah.exported(code) as image:
                node.add_with_packages(
                    self.names.trainer,
                    image,
                    packages,
                    self._buildah.layers(python),
                    supply=lambda: self._buildah.exported(python),
                )
        else:
            self._build(TRAINER, self.names.trainer, parent)
            with self._buildah.exported(self.names.trainer) as image:
                node.add(self.names.trainer, image)

    def _inventory(self, image: str) -> bill.Inventory:
        """Content of the image, which is built if it does not exist."""
        parent = base.ensure(self._buildah, self.base)
        packages = None
        if image == self.names.operator:
            self._build(OPERATOR, image, parent)
        elif self._variant is Variant.CPU:
            # Its packages are added when it is delivered.
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
        """The image of the Dockerfile stage `python`, and the packages for the layer above it."""
        python = f"localhost/finetune-trainer-python:{content_key(('trainer_image/Dockerfile',), self.base)}"
        if not self._buildah.has(python):
            self._buildah.build(TRAINER, python, base=parent, target="python")
        return python, cpu_dependencies(self._buildah, python, content_key(TRIMMING_FILES, self.base))

    def _build(self, dockerfile: Path, name: str, parent: str, dependencies: str | None = None) -> None:
        if not self._buildah.has(name):
            _log(f"Building {name} …")
            self._buildah.build(dockerfile, name, base=parent, dependencies=dependencies)
            if name.removesuffix(CODE) not in image_references(self.base, self._variant, self._registry):
                self._buildah.run("rmi", name)
                raise SourcesChangedError("The sources changed during the build.")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
