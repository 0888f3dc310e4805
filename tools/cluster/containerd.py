# SPDX-License-Identifier: Apache-2.0
"""The container runtime of the node, its image store, and images of one program for it."""

import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from tools.cluster.commands import ClusterError, run, succeeds, until
from tools.cluster.layout import Layout, render
from tools.cluster.toolchain import COREDNS, PAUSE, Tool, program, system_program

_OCI: Final = "application/vnd.oci.image"
# The kernel's names of architectures and those of Go, which OCI uses.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def write_program_image(archive: Path, image: str, program: Path, user: int) -> None:
    """Write an image whose only file and entry point is `program`.

    The layer is not compressed, because it never leaves this machine.

    Args:
        archive: file to write.
        image: full name of the image with its tag.
        program: file to include.
        user: numeric user that runs the program.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(program.name)
        entry.mode, entry.size = 0o755, program.stat().st_size
        with program.open("rb") as file:
            tar.addfile(entry, file)
    blobs = _Blobs()
    layer_descriptor = blobs.add(f"{_OCI}.layer.v1.tar", layer.getvalue())
    config = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": f"{user}:{user}"},
        "rootfs": {"type": "layers", "diff_ids": [layer_descriptor["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": blobs.add(f"{_OCI}.config.v1+json", _json(config)),
        "layers": [layer_descriptor],
    }
    descriptor = blobs.add(f"{_OCI}.manifest.v1+json", _json(manifest))
    index = {
        "schemaVersion": 2,
        "manifests": [{**descriptor, "annotations": {"io.containerd.image.name": image}}],
    }
    with tarfile.open(archive, mode="w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json(index))
        for digest, content in blobs.contents.items():
            _add(tar, f"blobs/sha256/{digest}", content)


class _Blobs:
    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def add(self, media_type: str, content: bytes) -> dict[str, object]:
        """Add a blob, and return its descriptor."""
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size = 0o644, len(content)
    tar.addfile(entry, io.BytesIO(content))


PAUSE_IMAGE: Final = f"localhost/pause:{PAUSE.key}"
COREDNS_IMAGE: Final = f"localhost/coredns:{COREDNS.key}"
_PAUSE_USER: Final = 65535
_COREDNS_USER: Final = 65532
_CNI_PLUGINS: Final = ("/usr/lib/cni", "/opt/cni/bin")
_NAMESPACE: Final = "k8s.io"
_REMOVED_WITHIN_SECONDS: Final = 60


class Containerd:
    """containerd with all its files below the cluster's state."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which `ctr` uses this containerd."""
        return {
            "CONTAINERD_ADDRESS": str(self._layout.containerd_socket),
            "CONTAINERD_NAMESPACE": _NAMESPACE,
            "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1",
        }

    def command(self) -> list[str]:
        return [str(program("containerd")), "--config", str(self._layout.config / "containerd.toml")]

    def write_config(self) -> None:
        """Write containerd's configuration.

        Raises:
            ClusterError: a distribution package is missing.
        """
        config = render(
            "containerd.toml",
            root=self._layout.containerd_root,
            run=self._layout.run,
            socket=self._layout.containerd_socket,
            pause_image=PAUSE_IMAGE,
            registries=self._layout.registries,
            cni_plugins=_cni_plugins(),
            cni_config=self._layout.config / "cni",
            shim=program("containerd-shim-runc-v2"),
            runc=system_program("runc", "runc"),
        )
        (self._layout.config / "containerd.toml").write_text(config)

    def ctr_command(self) -> list[str]:
        """Beginning of a `ctr` command for this containerd and the namespace of Kubernetes' images."""
        socket = str(self._layout.containerd_socket)
        return [str(program("ctr")), "--address", socket, "--namespace", _NAMESPACE]

    def ctr(self, *arguments: str | Path) -> str:
        """Run a `ctr` command, and return its output."""
        return run([*self.ctr_command(), *arguments], environment=self.environment)

    def is_ready(self) -> bool:
        return self._layout.containerd_socket.exists() and succeeds([*self.ctr_command(), "version"])

    def images(self) -> set[str]:
        """Names of all images in the store."""
        return set(self.ctr("images", "ls", "-q").split())

    def load_archive(self, archive: Path) -> None:
        """Import the images of a Docker or OCI archive.

        Raises:
            ClusterError: the file is missing, or is not an image archive.
        """
        if not archive.is_file():
            raise ClusterError(f"{archive} does not exist: give a Docker or OCI image archive (tar)")
        self.ctr("images", "import", "--local", archive.absolute())

    def load_own_images(self) -> None:
        """Import the two images that the cluster itself needs, unless the store has them."""
        present = self.images()
        own: list[tuple[str, Tool, str, int]] = [
            (PAUSE_IMAGE, PAUSE, "pause", _PAUSE_USER),
            (COREDNS_IMAGE, COREDNS, "coredns", _COREDNS_USER),
        ]
        for image, tool, name, user in own:
            if image not in present:
                with tempfile.TemporaryDirectory(dir=self._layout.state) as folder:
                    archive = Path(folder) / f"{name}.tar"
                    write_program_image(archive, image, tool.folder / name, user)
                    self.load_archive(archive)

    def remove_containers(self) -> None:
        """Kill and remove all containers and sandboxes; images stay.

        Leases are removed too: each sandbox has one, which would keep its image forever.
        """
        for listing, removal in (
            (["tasks", "ls", "-q"], ["tasks", "rm", "--force"]),
            (["containers", "ls", "-q"], ["containers", "rm"]),
            (["sandboxes", "ls"], ["sandboxes", "rm", "--force"]),
            (["leases", "ls", "-q"], ["leases", "rm"]),
        ):
            until(
                f"containerd to remove its {listing[0]}",
                partial(self._none_left, listing, removal),
                seconds=_REMOVED_WITHIN_SECONDS,
            )

    def _none_left(self, listing: list[str], removal: list[str]) -> bool:
        lines = [line for line in self.ctr(*listing).splitlines() if line and not line.startswith("ID ")]
        for line in lines:
            # containerd may have removed an entry itself; the next listing decides.
            succeeds([*self.ctr_command(), *removal, line.split()[0]])
        return not lines


def _cni_plugins() -> str:
    for folder in _CNI_PLUGINS:
        if os.access(Path(folder) / "bridge", os.X_OK):
            return folder
    raise ClusterError(
        f"there are no CNI plugins in {' or '.join(_CNI_PLUGINS)}: "
        "install the distribution package containernetworking-plugins"
    )
