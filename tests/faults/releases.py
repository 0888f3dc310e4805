# SPDX-License-Identifier: Apache-2.0
"""Copies of the operator with edits in their sources."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "operator" / "finetune_operator"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces a text that occurs once in a file of the package."""

    file: str
    old: str
    new: str


def release(folder: Path, edits: Iterable[Edit]) -> Mapping[str, str]:
    """Create an edited copy in `folder`.

    Returns:
        Environment in which `python -m finetune_operator` runs the copy.

    Raises:
        ValueError: a text does not occur exactly once. Adapt the edit to the changed code.
    """
    copy = folder / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in edits:
        path = copy / edit.file
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise ValueError(f"{edit.file} contains {text.count(edit.old)} times instead of once: {edit.old}")
        path.write_text(text.replace(edit.old, edit.new))
    return {"PYTHONPATH": str(folder)}
