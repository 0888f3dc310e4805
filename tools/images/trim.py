# SPDX-License-Identifier: Apache-2.0
"""Create a tree of the trainer's packages without GPU code, as hard links to the full tree."""

import re
from pathlib import Path
from typing import Final

from tools.images.elf import closure
from tools.images.links import link
from tools.images.stubs import write_stub

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
