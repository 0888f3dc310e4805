# SPDX-License-Identifier: Apache-2.0
"""Programs are run in alternation."""

from pathlib import Path

import pytest
from rich.console import Console

from tools.bench.program import alternate

PROGRAM = """\
import json, pathlib, sys
words = [pathlib.Path(sys.argv[0]).stem, sys.argv[1]]
with open({log!r}, "a") as log:
    print(*words, file=log)
print(json.dumps({{"words": words}}))
"""


def test_programs_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    for name in ("slow", "fast"):
        (tmp_path / f"{name}.py").write_text(PROGRAM.format(log=str(log)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    measured = alternate(Console(quiet=True), "example", 2, {"ours": "fast", "peer": "slow"}, "rows")

    assert log.read_text().splitlines() == ["fast rows", "slow rows"] * 2
    assert {name: [each.printed["words"] for each in rounds] for name, rounds in measured.items()} == {
        "ours": [["fast", "rows"]] * 2,
        "peer": [["slow", "rows"]] * 2,
    }
