# SPDX-License-Identifier: Apache-2.0
"""The trainer's Python packages for machines without a GPU, as a folder in the cache.

PyPI's torch for Linux is linked against CUDA, so the loader requires gigabytes of libraries that a machine
without a GPU never uses. The folder is a tree of hard links to the full packages without GPU code, with small
stubs of CUDA libraries: they satisfy the loader, and any call into them aborts.
"""

import errno
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection

from tools.bootstrap.uv import ROOT, Uv, cache_directory
from tools.images.buildah import Buildah


@dataclass(frozen=True)
class Symbol:
    """A dynamic symbol that a library defines; `version` is empty if it has none."""

    name: str
    version: str
    is_object: bool
    size: int


def needed(library: Path) -> list[str]:
    """File names of the libraries that `library` requires (DT_NEEDED)."""
    return _dynamic(library, "DT_NEEDED", "needed")


def soname(library: Path) -> str:
    """Name by which other libraries require it (DT_SONAME); its file name if it declares none."""
    return next(iter(_dynamic(library, "DT_SONAME", "soname")), library.name)


def closure(roots: list[Path], available: list[Path]) -> set[Path]:
    """The `available` libraries that the loader maps when it loads `roots`."""
    by_name = {path.name: path for path in available}
    found: set[Path] = set()
    pending = list(roots)
    while pending:
        required = {by_name[name] for name in needed(pending.pop()) if name in by_name}
        pending.extend(required - found)
        found |= required
    return found


def defined_symbols(library: Path) -> Iterator[Symbol]:
    """The functions and objects that `library` exports, each name once.

    Raises:
        TypeError: it is not a shared library.
    """
    with library.open("rb") as stream:
        elf = ELFFile(stream)
        table = elf.get_section_by_name(".dynsym")
        if not isinstance(table, SymbolTableSection):
            raise TypeError(f"{library} is not a shared library: it has no dynamic symbols")
        versions = _versions(elf)
        numbers = elf.get_section_by_name(".gnu.version")
        seen = set()
        for index, entry in enumerate(table.iter_symbols()):
            # SHN_ABS marks names of versions.
            if entry["st_shndx"] in {"SHN_UNDEF", "SHN_ABS"} or not entry.name or entry.name in seen:
                continue
            seen.add(entry.name)
            number = numbers.get_symbol(index)["ndx"] if isinstance(numbers, GNUVerSymSection) else 0
            is_object = entry["st_info"]["type"] == "STT_OBJECT"
            yield Symbol(entry.name, versions.get(number, ""), is_object, entry["st_size"])


def _dynamic(library: Path, tag: str, attribute: str) -> list[str]:
    with library.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".dynamic")
        if not isinstance(section, DynamicSection):
            return []
        return [getattr(entry, attribute) for entry in section.iter_tags(tag)]


def _versions(elf: ELFFile) -> dict[int, str]:
    section = elf.get_section_by_name(".gnu.version_d")
    if not isinstance(section, GNUVerDefSection):
        return {}
    return {
        definition["vd_ndx"]: next(iter(names)).name
        for definition, names in section.iter_versions()
        if not definition["vd_flags"] & 1  # the library's own name, which is not a version
    }


ILLEGAL_INSTRUCTION: Final = {"x86_64": "ud2", "aarch64": "udf #0"}


def write_stub(library: Path, target: Path) -> None:
    """Write to `target` a library with the name, symbols and symbol versions of `library`.

    Raises:
        subprocess.CalledProcessError: the linker failed; its message is on the terminal.
    """
    symbols = sorted(defined_symbols(library), key=lambda symbol: symbol.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "stub.s"
        source.write_text(_assembly(symbols))
        command = ["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{soname(library)}"]
        if script := _version_script(symbols):
            versions = Path(folder) / "versions"
            versions.write_text(script)
            command.append(f"-Wl,--version-script={versions}")
        subprocess.run([*command, "-o", target, source], check=True)


def _assembly(symbols: list[Symbol]) -> str:
    functions = [symbol.name for symbol in symbols if not symbol.is_object]
    lines = [".text"]
    for name in functions:
        lines += [f".globl {name}", f".type {name}, @function", f"{name}:"]
    lines += [ILLEGAL_INSTRUCTION[platform.machine()], ".bss"]
    for symbol in symbols:
        if symbol.is_object:
            size = max(symbol.size, 8)
            lines += [
                f".globl {symbol.name}",
                f".type {symbol.name}, @object",
                f".size {symbol.name}, {size}",
                f"{symbol.name}: .zero {size}",
            ]
    lines.append('.section .note.GNU-stack, "", @progbits')
    return "\n".join(lines) + "\n"


def _version_script(symbols: list[Symbol]) -> str:
    by_version = defaultdict(list)
    for symbol in symbols:
        if symbol.version:
            by_version[symbol.version].append(symbol.name)
    return "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in names)} }};\n"
        for version, names in by_version.items()
    )


def link(source: str | Path, target: str | Path) -> None:
    """Hard-link `target` to `source`; copy it if they are on different file systems."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EMLINK}:
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def link_tree(source: Path, target: Path) -> None:
    """Link every file of the folder `source` into the folder `target`, which may exist."""
    shutil.copytree(source, target, symlinks=True, copy_function=link, dirs_exist_ok=True)


# Smaller libraries stay real: torch calls into libcudart, libcupti and libcufile while it loads.
STUB_FROM_BYTES: Final = 10 << 20
# Whole directories are removed, because an empty one could still be imported as a namespace package.
NOT_NEEDED: Final = re.compile(
    r"(triton|cuda)/|(triton|cuda_bindings|cuda_pathfinder)-[^/]*\.dist-info/|torch/include/"
    r"|lm_eval/tasks/.+/"  # 15,000 small files; tasks come from ConfigMaps
    r"|bitsandbytes/libbitsandbytes_(cuda|rocm|xpu)[^/]*\.so$|.*\.(a|pyi)$"
)
TESTS: Final = re.compile(r"(?!torch/|numpy/).*\btests?/")  # torch and numpy import their tests
CUDA: Final = "nvidia/"


def trim(full: Path, target: Path) -> None:
    """Link the part of the site-packages folder `full` that a machine without a GPU needs into `target`.

    `full` is not changed. Do not edit files of either folder afterwards, because they share them.
    """
    libraries = list(full.glob(f"{CUDA}**/*.so*"))
    mapped = closure(list(full.glob("torch/lib/*.so*")), libraries)
    stubs = {path for path in mapped if path.stat().st_size >= STUB_FROM_BYTES}
    for path in sorted(full.rglob("*")):
        name = path.relative_to(full).as_posix()
        if path.is_dir() or NOT_NEEDED.match(name) or TESTS.match(name):
            continue
        if name.startswith(CUDA) and path not in mapped - stubs:
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        link(path, target / name)
    for path in stubs:
        write_stub(path, target / path.relative_to(full))


CONSTRAINTS: Final = ROOT / "constraints" / "trainer.txt"
COMPILE: Final = (
    *("python3", "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"),
    *("-x", "/torch/testing/_internal/py312_"),  # written for a later Python
)


@dataclass(frozen=True)
class Dependencies:
    """Packages for an image: `folder` on this machine, `destination` in the image."""

    folder: Path
    destination: PurePosixPath


def cpu_dependencies(buildah: Buildah, python_stage: str, key: str) -> Dependencies:
    """The packages of constraints/trainer.txt without GPU code, compiled for the Python of `python_stage`.

    The files are hard links into uv's cache: do not edit them in place.

    Args:
        buildah: runs the image's Python.
        python_stage: image whose Python uses the packages.
        key: name of the content; a folder with this key is reused.

    Raises:
        subprocess.CalledProcessError: uv or the linker failed; its message is on the terminal.
        ImageError: the packages could not be compiled.
    """
    destination = buildah.output(
        python_stage, "python3", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    )
    dependencies = Dependencies(cache_directory() / "images" / f"cpu-{key}", PurePosixPath(destination))
    if dependencies.folder.exists():
        return dependencies
    print("Preparing the trainer's packages without CUDA (about a minute) …", file=sys.stderr, flush=True)
    full, part = (dependencies.folder.with_suffix(suffix) for suffix in (".full", ".part"))
    for leftover in (full, part):
        shutil.rmtree(leftover, ignore_errors=True)
    version = dependencies.destination.parent.name.removeprefix("python")
    install = ("pip", "install", "--quiet", "--no-deps", "--require-hashes", "--requirement", CONSTRAINTS)
    Uv().run(*install, "--target", full, "--python-version", version)
    trim(full, part)
    shutil.rmtree(full)
    # Compiled at their destination, so that tracebacks have the right paths.
    buildah.output(python_stage, *COMPILE, destination, volume=(part, destination))
    part.rename(dependencies.folder)
    return dependencies
