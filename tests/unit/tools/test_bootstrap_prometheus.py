# SPDX-License-Identifier: Apache-2.0
"""Search for the programs of Prometheus."""

from pathlib import Path

import pytest

from tools.bootstrap.prometheus import program


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.touch(0o755)
    return path


def test_a_program_on_path_comes_before_the_unpacked_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert program("promtool") is None
    unpacked = executable(tmp_path / "cache" / "finetune-operator" / "bin" / "prometheus" / "promtool")
    assert program("promtool") == unpacked
    installed = executable(tmp_path / "path" / "promtool")
    assert program("promtool") == installed
