# SPDX-License-Identifier: Apache-2.0
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.images.cpu_packages import STUB_FROM_BYTES, trim

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def library(path: Path, source: str, *options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler = ("gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-Wl,--no-as-needed")
    command = [*compiler, "-o", str(path), f"-Wl,-soname,{path.name}", *options]
    subprocess.run(command, input=source, text=True, check=True)
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Packages like those of a CUDA build of torch."""
    root = tmp_path / "full"
    big = library(
        root / "nvidia/cublas/lib/libcublas.so.13",
        f"char table[{STUB_FROM_BYTES}] = {{1}}; int big(void) {{ return 1; }}",
    )
    small = library(root / "nvidia/cuda_runtime/lib/libcudart.so.13", "int small(void) { return 1; }")
    library(root / "nvidia/cudnn/lib/libcudnn_engines.so.9", "int loaded_on_use(void) { return 1; }")
    library(root / "torch/lib/libtorch_cuda.so", "int torch(void) { return 1; }", str(big), str(small))
    for name in (
        "torch/__init__.py",
        "torch/testing/__init__.py",
        "torch/include/torch.h",
        "triton/__init__.py",
        "triton-3.9.0.dist-info/METADATA",
        "cuda/bindings/driver.so",
        "nvidia/cublas/include/cublas.h",
        "pandas/__init__.py",
        "pandas/tests/test_frame.py",
        "latest/__init__.py",
        "lm_eval/tasks/__init__.py",
        "lm_eval/tasks/arc/arc_easy.yaml",
        "bitsandbytes/__init__.py",
        "bitsandbytes/libbitsandbytes_cpu.so",
        "bitsandbytes/libbitsandbytes_cuda132.so",
        "bitsandbytes/libbitsandbytes_rocm70.so",
        "bitsandbytes/libbitsandbytes_xpu2026.so",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    return root


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_what_a_cpu_never_loads_is_left_out(full: Path, tmp_path: Path) -> None:
    trim(full, tmp_path / "trimmed")

    assert files(tmp_path / "trimmed") == {
        "bitsandbytes/__init__.py",
        "bitsandbytes/libbitsandbytes_cpu.so",
        "latest/__init__.py",
        "lm_eval/tasks/__init__.py",
        "nvidia/cublas/lib/libcublas.so.13",
        "nvidia/cuda_runtime/lib/libcudart.so.13",
        "pandas/__init__.py",
        "torch/__init__.py",
        "torch/lib/libtorch_cuda.so",
        "torch/testing/__init__.py",
    }


def test_no_empty_folder_remains_that_would_import_as_a_namespace(full: Path, tmp_path: Path) -> None:
    trim(full, tmp_path / "trimmed")

    assert not (tmp_path / "trimmed/triton").exists()
    assert not (tmp_path / "trimmed/cuda").exists()


def test_only_large_libraries_become_stubs_and_the_full_tree_stays(full: Path, tmp_path: Path) -> None:
    before = {name: (full / name).stat().st_size for name in files(full)}
    trim(full, tmp_path / "trimmed")

    stub = tmp_path / "trimmed/nvidia/cublas/lib/libcublas.so.13"
    real = tmp_path / "trimmed/nvidia/cuda_runtime/lib/libcudart.so.13"
    assert stub.stat().st_blocks * 512 < 1 << 20
    assert real.samefile(full / "nvidia/cuda_runtime/lib/libcudart.so.13")
    assert {name: (full / name).stat().st_size for name in files(full)} == before
