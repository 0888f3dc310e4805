# SPDX-License-Identifier: Apache-2.0
"""OCI image archives without the layers that the receiver already has."""

import hashlib
import io
import json
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

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
