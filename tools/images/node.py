"""The image store of the local cluster's node."""

import tempfile
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from tools.bootstrap.cache import cache_directory
from tools.cluster.containerd import Containerd
from tools.cluster.layout import DEFAULT_NAME, Layout
from tools.images.archive import Image, Layer, chain_id, write_oci_archive
from tools.images.dependencies import Dependencies
from tools.images.errors import ImageError
from tools.images.links import link_tree

Supply = Callable[[], AbstractContextManager[Image]]

_UPPER: Final = "upperdir="


class Node:
    """Takes images layer by layer: what it has is never sent again."""

    def __init__(self) -> None:
        self._containerd = Containerd(Layout.of(DEFAULT_NAME))
        if not self._containerd.is_ready():
            raise ImageError("the local cluster is not running: start it with `make cluster`")

    def has(self, name: str) -> bool:
        """Whether an image of that full name can be run."""
        return name in self._containerd.images()

    def add(self, name: str, image: Image) -> None:
        """Have `image` under the full `name`, unpacked."""
        present = set(self._containerd.ctr("content", "ls", "--quiet").split())
        with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
            archive = Path(folder) / "image.tar"
            write_oci_archive(archive, name, image, present)
            self._containerd.load_archive(archive)

    def link(self, dependencies: Dependencies, parents: list[str], marker: Layer, supply: Supply) -> None:
        """Have the node find `marker`, as a layer above the layers `parents`, unpacked with other content.

        That content is the dependencies', without a copy: its files are the very ones of the folder, which
        stays in use. An image with that layer runs, but cannot be exported.

        Args:
            dependencies: what pods are to see.
            parents: digests of the layers below.
            marker: the layer that images name in place of the dependencies.
            supply: yields an image of just the parents, if the node has to be given them.
        """
        snapshot = chain_id([*parents, marker.digest])
        if self._has_snapshot(snapshot):
            return
        parent = chain_id(parents)
        with supply() as image:
            # Its name keeps the node from collecting the parents.
            self.add(f"localhost/finetune-parents:{parent.rpartition(':')[2][:12]}", image)
        self._commit(parent, snapshot, dependencies)

    def _has_snapshot(self, name: str) -> bool:
        listing = self._containerd.ctr("snapshots", "ls").splitlines()[1:]
        return name in {line.split()[0] for line in listing}

    def _commit(self, parent: str, snapshot: str, dependencies: Dependencies) -> None:
        """Commit a snapshot upon `parent` that holds the dependencies."""
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
