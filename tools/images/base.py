# SPDX-License-Identifier: Apache-2.0
"""The base image: that of the Dockerfiles, or one that is built here if no registry is reachable."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import ROOT, cache_directory
from tools.images.buildah import Buildah, ImageError
from tools.images.tags import plain_http

PINNED: Final = re.compile(r"(?P<name>[^@]+?)(?::[\w.-]+)?@(?P<digest>sha256:[0-9a-f]{64})")
"""An image name with a digest; a tag between them is ignored."""
DEFAULT: Final = re.compile(r"^ARG BASE_IMAGE=(\S+)$", re.MULTILINE)
SUITE: Final = "bookworm"
BOOTSTRAP: Final = (
    *("mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates,python3,python3-venv"),
    *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
    *("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/info/*"),
    *("--format=tar", SUITE),
)
SUBSTITUTE: Final = f"localhost/finetune-base:{hashlib.sha256(repr(BOOTSTRAP).encode()).hexdigest()[:12]}"


def base_image(buildah: Buildah) -> str:
    """Name of the base image, which may not exist yet (see `ensure`).

    The environment variable BASE_IMAGE takes precedence. Otherwise the first call on this machine tries the
    registry and records the choice, so that tags do not change with the network.

    Raises:
        ImageError: the Dockerfile names no base image.
    """
    if chosen := os.environ.get("BASE_IMAGE"):
        return chosen
    record = cache_directory() / "images" / "base"
    if record.exists():
        return record.read_text()
    default = DEFAULT.search((ROOT / "operator" / "Dockerfile").read_text())
    if default is None:
        raise ImageError("operator/Dockerfile has no line ARG BASE_IMAGE=…: put it back")
    chosen = default[1]
    try:
        pull(buildah, chosen)
    except ImageError as error:
        reason = str(error).splitlines()[-1]
        print(
            f"The base image {chosen} cannot be pulled ({reason}).\n"
            f"A substitute is built here. To try the registry again later, remove {record}.",
            file=sys.stderr,
        )
        chosen = SUBSTITUTE
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(chosen)
    return chosen


def require_pinned(image: str) -> None:
    """Reject a base image whose name has no digest.

    Raises:
        ImageError: `image` has no digest.
    """
    if not PINNED.fullmatch(image):
        raise ImageError(
            f"a release needs a base image with a digest, and {image} has none: set"
            " BASE_IMAGE=NAME:TAG@sha256:DIGEST, or write that after ARG BASE_IMAGE= in both Dockerfiles"
        )


def pull(buildah: Buildah, image: str) -> str:
    """Pull `image`, and return its id in buildah's store.

    Raises:
        ImageError: the registry is not reachable or does not have the image.
    """
    pinned = PINNED.fullmatch(image)
    # buildah accepts either a tag or a digest.
    source = f"{pinned['name']}@{pinned['digest']}" if pinned else image
    return buildah.run("pull", "--quiet", *plain_http(image), f"docker://{source}")


def ensure(buildah: Buildah, image: str) -> str:
    """Pull or build the base `image` unless buildah's store has it; returns its name or id there.

    Raises:
        ImageError: it can neither be pulled nor built.
    """
    if image != SUBSTITUTE:
        return pull(buildah, image)
    if not buildah.has(image):
        print("Building the base image with mmdebstrap (about a minute) …", file=sys.stderr, flush=True)
        archive = cache_directory() / "images" / "base.tar"
        try:
            subprocess.run([*BOOTSTRAP, archive, *_mirrors()], stdin=subprocess.DEVNULL, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ImageError(
                f"{error}: mmdebstrap needs a mirror of Debian {SUITE}. Configure one, or set BASE_IMAGE"
            ) from error
        container = buildah.run("from", "scratch")
        buildah.run("add", "--quiet", container, archive, "/")
        buildah.run("commit", "--quiet", "--rm", container, image)
        archive.unlink()
    return image


def _mirrors() -> list[Path]:
    """Package sources of this machine if it has the same suite; empty for mmdebstrap's default."""
    if f"VERSION_CODENAME={SUITE}" not in Path("/etc/os-release").read_text():
        return []
    folder = Path("/etc/apt")
    candidates = [folder / "sources.list", folder / "sources.list.d" / "debian.sources"]
    return [path for path in candidates if path.exists() and path.stat().st_size]
