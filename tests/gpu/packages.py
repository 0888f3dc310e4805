# SPDX-License-Identifier: Apache-2.0
"""python -m tests.gpu.packages: pack what a GPU machine without a network lacks.

The archive is build/gpu-packages.tar.xz. Such a machine has PyTorch with its CUDA libraries, and the usual
packages of numerical work. The archive has the others of constraints/trainer.txt that the steps import, and
Liger for the comparison with TRL. It travels with the working tree, so both must stay below
MAX_CARRIED_BYTES.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import ROOT, Uv

PINS: Final = ROOT / "constraints" / "trainer.txt"
PEER_PINS: Final = Path(__file__).with_name("peer.txt")
"""Packages that only the comparison with TRL needs."""
ARCHIVE: Final = ROOT / "build" / "gpu-packages.tar.xz"
PYTHON: Final = "3.12"
PLATFORM: Final = "x86_64-manylinux_2_31"
CUDA: Final = "130"
"""CUDA of the machine's PyTorch, as in the names of the libraries of bitsandbytes."""
MAX_CARRIED_BYTES: Final = 64 << 20

CARRIED: Final = (
    # Newer than the machine's, or possibly so.
    *("transformers", "tokenizers", "peft", "accelerate"),
    *("trl", "datasets", "dill", "multiprocess", "bitsandbytes"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    *("jsonschema", "jsonschema-specifications", "referencing", "rpds-py", "attrs"),
    *("fastapi", "starlette", "uvicorn", "opentelemetry-api", "llguidance", "prometheus-client"),
    *("google-re2", "zstandard", "orjson", "phonenumbers", "python-stdnum", "detect-secrets"),
    *("datasketch", "openpyxl", "et-xmlfile"),
)
"""What the steps import and the machine lacks. Not in it: PyTorch and CUDA, compiled packages that the
machine has (numpy, scipy, pandas, pyarrow), and clients of buckets and hubs, which no step uses."""

NOT_CARRIED: Final = re.compile(
    rf"bitsandbytes/libbitsandbytes_(?!cpu\.|cuda{CUDA}\.).*\.so$|bin/|.*\.pyi$|(.*/)?__pycache__/"
)
"""Files that stay here: libraries for other devices and versions of CUDA, programs, and stubs."""


def pins(text: str, names: tuple[str, ...]) -> str:
    """The entries of these packages in a requirements file with hashes.

    Raises ValueError that names packages without an entry.
    """
    entries = {
        re.split(r"[=\[; ]", entry, maxsplit=1)[0]: entry
        for entry in re.split(r"\n(?=[a-z0-9])", text)
        if re.match(r"[a-z0-9]", entry)
    }
    if unknown := [name for name in names if name not in entries]:
        raise ValueError(f"no pins of {', '.join(unknown)}")
    return "".join(f"{entries[name].strip()}\n" for name in names)


def pinned_versions(text: str) -> dict[str, str]:
    """The version of each package in a requirements file."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", text, re.MULTILINE))


def pack(site: Path, archive: Path) -> None:
    """Write the files of a folder of installed packages that the machine needs into an archive."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(".part")
    with tarfile.open(part, "w:xz") as packed:
        for file in sorted(site.rglob("*")):
            name = file.relative_to(site).as_posix()
            if file.is_file() and not NOT_CARRIED.match(name):
                packed.add(file, name)
    part.rename(archive)


def tree_bytes() -> int:
    """Bytes of the files of the working tree that travel: those that git tracks or does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    files = (ROOT / name for name in names.split("\0") if name)
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> int:
    """Pack, and print the sizes. Exit code 1: they do not fit."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, site = Path(folder) / "requirements.txt", Path(folder) / "site"
        requirements.write_text(pins(PINS.read_text(), CARRIED) + PEER_PINS.read_text())
        Uv().run(
            *("pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"),
            *("--python-version", PYTHON, "--python-platform", PLATFORM),
            *("--requirement", requirements, "--target", site),
        )
        pack(site, ARCHIVE)
    sizes = {"packages": ARCHIVE.stat().st_size, "working tree": tree_bytes()}
    print(", ".join(f"{name}: {size / (1 << 20):.1f} MiB" for name, size in sizes.items()))
    if sum(sizes.values()) > MAX_CARRIED_BYTES:
        print(f"together more than {MAX_CARRIED_BYTES >> 20} MiB: carry less in CARRIED", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
