"""Copies of the operator in which something is different, run in place of it."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "operator" / "finetune_operator"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces a text that is found once in a file of the package."""

    file: str
    old: str
    new: str


def release(folder: Path, edits: Iterable[Edit]) -> Mapping[str, str]:
    """Make a copy in `folder`; the environment in which `python -m finetune_operator` is that copy.

    Raises:
        ValueError: a text is not there, or not once: the code has changed, and the edit must follow it.
    """
    copy = folder / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in edits:
        path = copy / edit.file
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise ValueError(f"{edit.file} has {text.count(edit.old)} times, not once: {edit.old}")
        path.write_text(text.replace(edit.old, edit.new))
    return {"PYTHONPATH": str(folder)}
