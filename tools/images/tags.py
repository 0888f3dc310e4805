# SPDX-License-Identifier: Apache-2.0
"""Names of the images. A tag is a hash of the content, so that equal content is built once."""

import hashlib
import os
from enum import StrEnum
from typing import Final, NamedTuple

from tools.bootstrap.uv import ROOT

OPERATOR_FILES: Final = (
    "operator/Dockerfile",
    "constraints/operator.txt",
    "operator/finetune_operator",
    "trainer_image/finetune_trainer/__init__.py",
    "trainer_image/finetune_trainer/contract",
)
TRAINER_FILES: Final = (
    "trainer_image/Dockerfile",
    "trainer_image/compiler_check.py",
    "constraints/trainer.txt",
    "trainer_image/finetune_trainer",
)
TRIMMING_FILES: Final = (
    "constraints/trainer.txt",
    "tools/images/cpu_packages.py",
)


LOCAL: Final = "localhost"
"""Registry in the names of images that are not pushed."""


class Variant(StrEnum):
    """Variant of the trainer image."""

    CPU = "cpu"
    """Without GPU code: a third of the size. Not for machines with a GPU."""
    CUDA = "cuda"


class References(NamedTuple):
    """Full image names with tags."""

    operator: str
    trainer: str


def image_references(base: str, variant: Variant, registry: str | None = None) -> References:
    """Names of the images of the present sources, built on `base`.

    They are in `registry`; by default in IMAGE_REGISTRY or `localhost`.
    """
    registry = registry or os.environ.get("IMAGE_REGISTRY", "").rstrip("/") or LOCAL
    trainer_files = TRAINER_FILES + (TRIMMING_FILES if variant is Variant.CPU else ())
    return References(
        operator=f"{registry}/finetune-operator:{content_key(OPERATOR_FILES, base)}",
        trainer=f"{registry}/finetune-trainer:{content_key(trainer_files, base)}-{variant}",
    )


def plain_http(image: str) -> tuple[str, ...]:
    """Option for a registry on this machine, which has no certificate; the same rule as in Docker."""
    host = image.partition("/")[0].partition(":")[0]
    return ("--tls-verify=false",) if host in {"localhost", "127.0.0.1"} else ()


def content_key(names: tuple[str, ...], *also: str) -> str:
    """First 12 hexadecimal digits of a hash of files of the repository and of strings.

    Args:
        names: files; a folder includes all files below it except Python's caches.
        also: strings.
    """
    digest = hashlib.sha256()
    for text in also:
        digest.update(f"{len(text)}:{text}".encode())
    for name in names:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                content = file.read_bytes()
                digest.update(
                    f"{file.relative_to(ROOT)}\n{file.stat().st_mode & 0o777:o} {len(content)}\n".encode()
                )
                digest.update(content)
    return digest.hexdigest()[:12]
