# SPDX-License-Identifier: Apache-2.0
"""Each line of the trainer that only a GPU reaches is reached by its emulation, or by a step for a GPU."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import finetune_trainer
from tests.gpu.branches import BRANCHES
from tests.gpu.steps import STEPS
from tools.bootstrap.uv import ROOT

PACKAGE: Final = Path(finetune_trainer.__file__).parent
DEVICES: Final = {"cuda", "cpu"}


def depends_on_a_gpu(node: ast.AST) -> bool:
    """Whether a node compares the type of a device, or uses `torch.cuda` or `is_cuda`."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        compares_type = any(isinstance(side, ast.Attribute) and side.attr == "type" for side in sides)
        return compares_type and any(
            isinstance(side, ast.Constant) and side.value in DEVICES for side in sides
        )
    if isinstance(node, ast.Attribute):
        is_torch = isinstance(node.value, ast.Name) and node.value.id == "torch"
        return node.attr == "is_cuda" or (is_torch and node.attr == "cuda")
    return False


def found_branches(source: str) -> set[str]:
    """Names of the functions of a module with such a node; a node outside of functions has the name ``."""

    def visit(node: ast.AST, name: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}".lstrip(".")
        if depends_on_a_gpu(node):
            yield name
        for child in ast.iter_child_nodes(node):
            yield from visit(child, name)

    return set(visit(ast.parse(source), ""))


def test_every_branch_for_a_gpu_is_in_the_table() -> None:
    found = {
        f"{file.relative_to(PACKAGE).as_posix()}:{name}"
        for file in PACKAGE.rglob("*.py")
        for name in found_branches(file.read_text())
    }

    assert found - set(BRANCHES) == set(), "add what reaches them to tests/gpu/branches.py"
    assert set(BRANCHES) - found == set(), "remove them from tests/gpu/branches.py"


@pytest.mark.parametrize(
    "source",
    [
        'def f(d):\n    return 1 if d.type == "cuda" else 2',
        'def f(d):\n    return d.device.type != "cpu"',
        "def f(x):\n    return x.is_cuda",
        "def f():\n    torch.cuda.synchronize()",
    ],
)
def test_a_new_branch_is_found(source: str) -> None:
    assert found_branches(source) == {"f"}
    assert found_branches('def f(d):\n    return d.type == "meta"') == set()


@pytest.mark.parametrize("name", BRANCHES)
def test_what_reaches_a_branch_exists(name: str) -> None:
    reached = BRANCHES[name]

    assert reached.emulated_by or (reached.reason and reached.step)
    if reached.emulated_by is not None:
        file, _, test = reached.emulated_by.partition("::")
        names = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text()))
                 if isinstance(node, ast.FunctionDef)}  # fmt: skip
        assert test in names
    if reached.step is not None:
        assert reached.step in STEPS
