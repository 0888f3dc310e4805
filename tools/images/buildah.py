# SPDX-License-Identifier: Apache-2.0
"""buildah with its own store, and OCI archives without the layers that the receiver already has."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from tools.bootstrap.uv import ROOT, Uv, cache_directory, pip_settings
from tools.images.tags import plain_http


class ImageError(Exception):
    """A build failed; the message says what failed and what to do next."""


class SourcesChangedError(ImageError):
    """The sources changed during the build; the image, which may not match its tag, was removed."""


OCI: Final = "application/vnd.oci.image"


@dataclass(frozen=True)
class Layer:
    """An uncompressed layer.

    Attributes:
        digest: digest of its tar file.
        archive: archive that contains the tar file.
        member: name of the tar file in the archive.
    """

    digest: str
    archive: Path
    member: str


@dataclass(frozen=True)
class Image:
    """An image's configuration without the list of layers, and its layers, lowest first."""

    configuration: dict[str, Any]
    layers: tuple[Layer, ...]

    @property
    def digests(self) -> list[str]:
        return [layer.digest for layer in self.layers]

    def with_layer(self, index: int, layer: Layer) -> "Image":
        """The same image with an additional layer above the lowest `index` layers."""
        return Image(self.configuration, (*self.layers[:index], layer, *self.layers[index:]))


def read_docker_archive(archive: Path) -> Image:
    """Read the image in an uncompressed archive of `buildah push docker-archive:`."""
    with tarfile.open(archive) as tar:
        manifest = json.load(_member(tar, "manifest.json"))[0]
        configuration = json.load(_member(tar, manifest["Config"]))
    digests = configuration.pop("rootfs")["diff_ids"]
    # The history describes every layer, so it would not match after a layer is inserted.
    configuration.pop("history", None)
    layers = (
        Layer(digest, archive, member) for digest, member in zip(digests, manifest["Layers"], strict=True)
    )
    return Image(configuration, tuple(layers))


def marker_layer(archive: Path, name: str) -> Layer:
    """Write to `archive` a layer that contains only an empty file `name`; equal each time."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    with tarfile.open(archive, "w") as tar:
        _add(tar, digest, layer.getvalue())
    return Layer(f"sha256:{digest}", archive, digest)


def write_oci_archive(target: Path, name: str, image: Image, present: Collection[str]) -> None:
    """Write `image` to `target` with the full `name`, without the layers whose digests are in `present`."""
    with tarfile.open(target, "w") as tar:
        layers = []
        for layer in image.layers:
            with tarfile.open(layer.archive) as source:
                content = _member(source, layer.member)
                size = content.seek(0, io.SEEK_END)
                content.seek(0)
                layers.append({"mediaType": f"{OCI}.layer.v1.tar", "digest": layer.digest, "size": size})
                if layer.digest not in present:
                    entry = tarfile.TarInfo(_blob(layer.digest))
                    entry.mode, entry.size = 0o644, size
                    tar.addfile(entry, content)
        configuration = image.configuration | {"rootfs": {"type": "layers", "diff_ids": image.digests}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": _put(tar, f"{OCI}.config.v1+json", configuration),
            "layers": layers,
        }
        descriptor = _put(tar, f"{OCI}.manifest.v1+json", manifest)
        index = {
            "schemaVersion": 2,
            "manifests": [descriptor | {"annotations": {"io.containerd.image.name": name}}],
        }
        _add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(tar, "index.json", json.dumps(index).encode())


def chain_id(digests: list[str]) -> str:
    """Name of the snapshot of these stacked layers (ChainID of the OCI image specification)."""
    chain = digests[0]
    for digest in digests[1:]:
        chain = "sha256:" + hashlib.sha256(f"{chain} {digest}".encode()).hexdigest()
    return chain


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    content = tar.extractfile(name)
    if content is None:
        raise ValueError(f"{tar.name!r} is not an image archive: {name} is not a file in it")
    return content


def _put(tar: tarfile.TarFile, media_type: str, document: object) -> dict[str, object]:
    """Add a JSON blob, and return its descriptor."""
    content = json.dumps(document).encode()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    _add(tar, _blob(digest), content)
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size = 0o644, len(content)
    tar.addfile(entry, io.BytesIO(content))


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
