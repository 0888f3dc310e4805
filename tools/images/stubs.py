# SPDX-License-Identifier: Apache-2.0
"""Small stubs of CUDA libraries: they satisfy the loader, and any call into them aborts.

PyPI's torch for Linux is linked against CUDA, so the loader requires gigabytes of libraries that a machine
without a GPU never uses.
"""

import platform
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Final

from tools.images.elf import Symbol, defined_symbols, soname

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
