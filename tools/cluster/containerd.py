# SPDX-License-Identifier: Apache-2.0
"""The container runtime of the node, and its image store."""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from tools.cluster.commands import run, succeeds
from tools.cluster.errors import ClusterError
from tools.cluster.imagearchive import write_program_image
from tools.cluster.layout import Layout
from tools.cluster.templates import render
from tools.cluster.toolchain import COREDNS, PAUSE, Tool, program, system_program
from tools.cluster.waiting import until

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
