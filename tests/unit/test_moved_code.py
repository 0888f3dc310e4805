# SPDX-License-Identifier: Apache-2.0
"""Code is compared without names of modules, and everything else of it is."""

import subprocess
from pathlib import Path

import pytest

from hack.moved_code import sources_of, statements

APART = {
    "tools.first": "def half(number: int) -> float:\n    return number / 2\n",
    "tools.second": (
        "from tools import first\n\n\ndef quarter(number: int) -> float:\n    return first.half(number) / 2\n"
    ),
}
MERGED = (
    "def half(number: int) -> float:\n    return number / 2\n\n\n"
    "def quarter(number: int) -> float:\n    return half(number) / 2\n"
)


def test_merged_modules_have_the_same_statements() -> None:
    assert statements(APART) == statements({"tools.both": MERGED})


@pytest.mark.parametrize(
    ("old", "new"), [("/ 2\n\n", "/ 3\n\n"), ("number: int", "count: int"), ("half(", "third(")]
)
def test_a_changed_statement_differs(old: str, new: str) -> None:
    assert old in MERGED
    assert statements(APART) != statements({"tools.both": MERGED.replace(old, new)})


def test_a_parameter_with_the_name_of_a_module_is_not_the_module() -> None:
    source = "from tools import first\n\n\ndef read(first: str) -> str:\n    return first.text\n"
    plain = "def read(first: str) -> str:\n    return text\n"
    assert statements({"tools.first": "", "tools.one": source}) != statements({"tools.one": plain})


def test_a_commit_before_a_package_was_added_has_the_modules_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "first.py").write_text(APART["tools.first"])
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message=one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert sources_of("HEAD") == {"tools.first": APART["tools.first"]}
