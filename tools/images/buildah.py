# SPDX-License-Identifier: Apache-2.0
"""buildah with its own store, separate from the images of other tools."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import ROOT, Uv, cache_directory, pip_settings
from tools.images.archive import Image, read_docker_archive
from tools.images.errors import ImageError
from tools.images.tags import plain_http

CERTIFICATES: Final = Path("/etc/ssl/certs")


class Buildah:
    """Builds images; the output of a build is shown only if it fails."""

    def __init__(self) -> None:
        if shutil.which("buildah") is None:
            raise ImageError("buildah is not installed: install the distribution package buildah")
        self._store = (
            *("--root", str(cache_directory() / "images" / "store")),
            *("--runroot", str(Path(tempfile.gettempdir()) / f"finetune-operator-buildah-{os.getuid()}")),
            *("--storage-driver", "overlay"),
        )

    def run(self, *arguments: str | Path) -> str:
        """Run a buildah command, and return its output.

        Raises:
            ImageError: it failed; the message ends with its output.
        """
        result = subprocess.run(
            ["buildah", *self._store, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            output = "\n".join((result.stdout + result.stderr).splitlines()[-40:])
            raise ImageError(f"buildah {arguments[0]} failed:\n{output}")
        return result.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether the store has `image`."""
        names = json.loads(self.run("images", "--json") or "[]")
        return any(image in (entry.get("names") or ()) for entry in names)

    def layers(self, image: str) -> list[str]:
        """Digests of the uncompressed layers of `image`, lowest first."""
        description = json.loads(self.run("inspect", "--type", "image", image))
        digests: list[str] = description["OCIv1"]["rootfs"]["diff_ids"]
        return digests

    def build(
        self,
        dockerfile: Path,
        image: str,
        *,
        base: str,
        target: str | None = None,
        dependencies: str | None = None,
        context: Path = ROOT,
    ) -> None:
        """Build `image` from `dockerfile`.

        Args:
            dockerfile: path of the Dockerfile.
            image: name of the result.
            base: value of the build argument BASE_IMAGE.
            target: last stage to build.
            dependencies: image that replaces the stage `dependencies`.
            context: build context: the repository, or another checkout of it.

        Raises:
            ImageError: the build failed; the message ends with its output.
        """
        named = ("--build-context", f"dependencies=container-image://{dependencies}") if dependencies else ()
        with tempfile.TemporaryDirectory() as folder:
            pip_configuration = Path(folder) / "pip.conf"
            settings = pip_settings(Uv().pip)
            pip_configuration.write_text(
                "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
            )
            self.run(
                *(
                    "build",
                    "--isolation",
                    "chroot",
                    "--network",
                    "host",
                    "--layers",
                    "--pull-never",
                    "--force-rm",
                ),
                *("--volume", f"{pip_configuration}:/etc/pip.conf:ro"),
                *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"),
                *("--build-arg", f"BASE_IMAGE={base}"),
                *(("--target", target) if target else ()),
                *named,
                *("--file", dockerfile, "--tag", image, context),
            )

    def add_layer(self, parent: str, folder: Path, destination: str, image: str) -> None:
        """Create `image` from `parent` and a layer with the content of `folder` at `destination`."""
        container = self.run("from", "--pull-never", parent)
        try:
            self.run("copy", container, folder, destination)
            self.run("commit", "--disable-compression", container, image)
        finally:
            self.run("rm", container)

    def push(self, image: str, target: str) -> str:
        """Push `image` to a registry with the name `target`. Returns the digest of its manifest.

        Its layers are compressed with zstd.
        """
        return self._push(image, f"docker://{target}", *plain_http(target))

    def save(self, image: str, layout: Path) -> str:
        """Write `image` to a new folder, as an OCI image layout. Returns the digest of its manifest.

        Its layers are compressed with zstd.
        """
        return self._push(image, f"oci:{layout}")

    def _push(self, image: str, destination: str, *more: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            digest = Path(folder) / "digest"
            options = ("--format", "oci", "--compression-format", "zstd", "--digestfile", digest)
            self.run("push", *more, *options, image, destination)
            return digest.read_text().strip()

    @contextmanager
    def exported(self, image: str) -> Iterator[Image]:
        """The image with its layers in a temporary archive during the block."""
        with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
            archive = Path(folder) / "image.tar"
            self.run("push", image, f"docker-archive:{archive}")
            yield read_docker_archive(archive)

    def output(self, image: str, *command: str, volume: tuple[Path, str] | None = None) -> str:
        """Output of `command` in a container of `image`; `volume` is a folder and its mount path."""
        container = self.run("from", "--pull-never", image)
        mount = ("--volume", f"{volume[0]}:{volume[1]}") if volume else ()
        try:
            return self.run("run", "--isolation", "chroot", *mount, container, "--", *command)
        finally:
            self.run("rm", container)
