# SPDX-License-Identifier: Apache-2.0
import ctypes
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.images.cpu_packages import closure, defined_symbols, needed, soname, write_stub

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed: make packages")


def compiled(folder: Path, name: str, source: str, *options: str) -> Path:
    library = folder / name
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-fPIC",
            "-x",
            "c",
            "-",
            "-x",
            "none",
            "-o",
            library,
            f"-Wl,-soname,{name}",
            *options,
        ],
        input=source,
        text=True,
        check=True,
    )
    return library


@pytest.fixture
def device_library(tmp_path: Path) -> Path:
    versions = tmp_path / "versions"
    versions.write_text("DEVICE_1 { global: compute; table; local: *; };\n")
    return compiled(
        tmp_path,
        "libdevice.so.1",
        "int table[4] = {1, 2, 3, 4}; int hidden(void) { return 1; } int compute(void) { return hidden(); }",
        f"-Wl,--version-script={versions}",
    )


def test_the_symbols_and_versions_of_a_library_are_read(device_library: Path) -> None:
    found = {(symbol.name, symbol.version, symbol.is_object) for symbol in defined_symbols(device_library)}

    assert found == {("compute", "DEVICE_1", False), ("table", "DEVICE_1", True)}
    assert soname(device_library) == "libdevice.so.1"


def test_a_stub_takes_the_place_of_a_library_that_another_is_linked_against(
    tmp_path: Path, device_library: Path
) -> None:
    user = compiled(
        tmp_path,
        "libuser.so",
        "int compute(void); int answer(void) { return 42; } int use(void) { return compute(); }",
        "-L",
        str(tmp_path),
        "-l:libdevice.so.1",
        "-Wl,-rpath,$ORIGIN",
    )
    replaced = tmp_path / "replaced"
    replaced.mkdir()
    shutil.copy(user, replaced)
    write_stub(device_library, replaced / "libdevice.so.1")

    assert needed(user)[0] == "libdevice.so.1"
    assert ctypes.CDLL(str(replaced / "libuser.so")).answer() == 42


def test_a_call_into_a_stub_ends_the_process(tmp_path: Path, device_library: Path) -> None:
    stub = tmp_path / "stub.so"
    write_stub(device_library, stub)

    done = subprocess.run(
        [sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(stub)!r}).compute()"], check=False
    )

    assert done.returncode == -signal.SIGILL


def test_the_closure_holds_what_is_needed_directly_and_indirectly(tmp_path: Path) -> None:
    lowest = compiled(tmp_path, "liblowest.so", "int lowest(void) { return 1; }")
    middle = compiled(
        tmp_path,
        "libmiddle.so",
        "int lowest(void); int middle(void) { return lowest(); }",
        "-L",
        str(tmp_path),
        "-llowest",
    )
    unused = compiled(tmp_path, "libunused.so", "int unused(void) { return 1; }")
    root = compiled(
        tmp_path,
        "libroot.so",
        "int middle(void); int root(void) { return middle(); }",
        "-L",
        str(tmp_path),
        "-lmiddle",
        f"-Wl,-rpath-link,{tmp_path}",
    )

    assert closure([root], [lowest, middle, unused]) == {lowest, middle}


def test_a_file_that_is_no_shared_library_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "object.o"
    subprocess.run(["gcc", "-c", "-x", "c", "-", "-o", source], input="int x;", text=True, check=True)

    with pytest.raises(TypeError, match="not a shared library"):
        list(defined_symbols(source))
