# SPDX-License-Identifier: Apache-2.0
"""A name has one meaning in the product and its tools."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tools.bootstrap.uv import ROOT

PACKAGES = (
    "client/finetune_client",
    "operator/finetune_operator",
    "trainer_image/finetune_trainer",
    "tools",
    "hack",
)
PAIR = {"operator/finetune_operator/api", "trainer_image/finetune_trainer/contract"}
"""A field of the API and the same field of the contract may have classes of one name."""


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_a_class_name_exists_once_except_in_pairs_of_api_and_contract() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append("/".join(path.parts[:3]))
    assert found["FineTuneJob"] == ["operator/finetune_operator/api"]
    twice = {
        name: places for name, places in found.items() if len(places) > 1 and sorted(places) != sorted(PAIR)
    }
    assert not twice


def test_bounds_are_named_max_and_min() -> None:
    bound = re.compile(r"(MOST|LEAST|FEWEST|LONGEST|SHORTEST)_|.*_AT_(MOST|LEAST)$")
    bounds = [
        f"{path}:{node.lineno} {node.id}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and bound.match(node.id)
    ]
    assert not bounds
