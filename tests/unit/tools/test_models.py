# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from tools.models import tiny
from tools.models.folder import cached
from tools.models.tiny import SPECIAL_TOKENS


def test_the_tiny_model_is_complete_and_small() -> None:
    folder = tiny()

    assert {path.name for path in folder.iterdir()} >= {
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert [token["content"] for token in tokens] == SPECIAL_TOKENS


def test_a_model_can_be_read_by_other_users() -> None:
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in tiny().iterdir())


def test_a_folder_is_made_once_for_the_same_ingredients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(target)
        (target / "config.json").write_text("{}")

    first = cached("model", b"one", make)
    again = cached("model", b"one", make)
    other = cached("model", b"two", make)

    assert first == again != other
    assert len(made) == 2


def test_a_model_that_could_not_be_made_leaves_no_folder_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        cached("model", b"one", fail)

    folder = cached("model", b"one", lambda _: None)
    assert list(folder.iterdir()) == []
