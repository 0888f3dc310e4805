# SPDX-License-Identifier: Apache-2.0
"""The image store of the local cluster's node."""

import tempfile
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import cache_directory
from tools.cluster.containerd import Containerd
from tools.cluster.layout import DEFAULT_NAME, Layout
from tools.images.buildah import Image, ImageError, Layer, chain_id, marker_layer, write_oci_archive
from tools.images.cpu_packages import Dependencies, link_tree

Supply = Callable[[], AbstractContextManager[Image]]

_UPPER: Final = "upperdir="


class Node:
    """Imports images without the layers that the node already has."""

    def __init__(self) -> None:
        self._containerd = Containerd(Layout.of(DEFAULT_NAME))
        if not self._containerd.is_ready():
            raise ImageError("the local cluster does not run: start it with `make cluster`")

    def has(self, name: str) -> bool:
        """Whether the store has an image with this full name."""
        return name in self._containerd.images()

    def add(self, name: str, image: Image) -> None:
        """Import and unpack `image` with the full `name`."""
        present = set(self._containerd.ctr("content", "ls", "--quiet").split())
        with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
            archive = Path(folder) / "image.tar"
            write_oci_archive(archive, name, image, present)
            self._containerd.load_archive(archive)

    def add_with_packages(
        self, name: str, image: Image, dependencies: Dependencies, parents: list[str], supply: Supply
    ) -> None:
        """Import `image` with the full `name`, and the dependencies as a layer above its lowest ones.

        Args:
            name: name of the image in the store.
            image: the image without the dependencies.
            dependencies: packages that are linked, not copied.
            parents: digests of the image's layers below the packages.
            supply: yields an image with only these layers.
        """
        with tempfile.TemporaryDirectory() as folder:
            marker = marker_layer(Path(folder) / "marker.tar", f".{dependencies.folder.name}")
            self.link(dependencies, parents, marker, supply)
            self.add(name, image.with_layer(len(parents), marker))

    def link(self, dependencies: Dependencies, parents: list[str], marker: Layer, supply: Supply) -> None:
        """Create the snapshot of the layer `marker` above `parents`, with the dependencies as its content.

        The snapshot's files are hard links to the folder of the dependencies, which stays in use. An image
        with this layer can run, but cannot be exported.

        Args:
            dependencies: content of the snapshot.
            parents: digests of the layers below.
            marker: layer that images name instead of the dependencies.
            supply: yields an image with only the parents, if the node does not have them.
        """
        snapshot = chain_id([*parents, marker.digest])
        if self._has_snapshot(snapshot):
            return
        parent = chain_id(parents)
        with supply() as image:
            # An image with a name protects the parents from garbage collection.
            self.add(f"localhost/finetune-parents:{parent.rpartition(':')[2][:12]}", image)
        self._commit(parent, snapshot, dependencies)

    def _has_snapshot(self, name: str) -> bool:
        listing = self._containerd.ctr("snapshots", "ls").splitlines()[1:]
        return name in {line.split()[0] for line in listing}

    def _commit(self, parent: str, snapshot: str, dependencies: Dependencies) -> None:
        """Commit a snapshot above `parent` with the dependencies."""
        draft = f"draft-{uuid.uuid4()}"
        self._containerd.ctr("snapshots", "prepare", draft, parent)
        try:
            mount = self._containerd.ctr("snapshots", "mounts", "/unused", draft)
            upper = next(part for part in mount.replace(",", " ").split() if part.startswith(_UPPER))
            target = Path(upper.removeprefix(_UPPER)) / dependencies.destination.relative_to("/")
            target.mkdir(parents=True)
            link_tree(dependencies.folder, target)
        except BaseException:
            self._containerd.ctr("snapshots", "rm", draft)
            raise
        self._containerd.ctr("snapshots", "commit", snapshot, draft)
