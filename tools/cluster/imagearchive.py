# SPDX-License-Identifier: Apache-2.0
"""Write an OCI image archive with one program, without a container tool."""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Final

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
