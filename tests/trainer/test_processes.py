# SPDX-License-Identifier: Apache-2.0
"""A forked trainer process is like one that the interpreter starts."""

import json
from pathlib import Path

import pytest

from tests.trainer.description import CODE, describe
from tests.trainer.processes import run, run_fresh, start, start_fresh

DESCRIBE = "from tests.trainer.description import describe; describe()"


@pytest.mark.parametrize("is_first", [False, True])
def test_it_finds_what_a_fresh_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_first: bool
) -> None:
    start("{}").kill()  # starts the server, with another folder and environment
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SET_LATER", "1")
    monkeypatch.delenv("PATH")
    environ = {"OF_ITS_OWN": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (
        start("{}", "--config", "x", arm=describe, environ=environ, is_first=is_first) as forked,
        start_fresh("{}", "-c", DESCRIBE, "--config", "x", environ=environ, is_first=is_first) as fresh,
    ):
        assert (forked.wait(), fresh.wait()) == (CODE, CODE)
        assert json.loads(forked.output) == json.loads(fresh.output)


def test_it_ends_as_a_fresh_one_ends() -> None:
    forked, fresh = run("[]"), run_fresh("[]")

    assert (forked.code, forked.messages) == (fresh.code, fresh.messages)
