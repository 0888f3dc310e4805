# SPDX-License-Identifier: Apache-2.0
"""Rows and headers with which a naive check takes quadratic time: hours for a row of the maximum size.

Each takes about a second where the work is linear, and minutes where it is quadratic.
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Checks, Cleaning
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.result import Prepared

DEADLINE_SECONDS = 30
"""Processor time, so that no test fails on a busy machine."""
SIZE = 400_000
SECRETS = {
    "e-mail addresses": "a.b@example.org ",
    "keys without an end": "AKIA",
    "keys in one word": "AKIA1234567890ABCDEF",
    "first lines of private keys": "-----BEGIN RSA PRIVATE KEY-----\n",
    "first lines in one line": "-----BEGIN RSA PRIVATE KEY----- ",
    "first lines of PuTTY": "PuTTY-User-Key-File-2 ",
    "heads of JSON Web Tokens": "eyJ",
    "npm": "//:_authToken=",
    "GitHub": "ghp_" + "a" * 36,
    "passwords": "password='hunter2x' ",
}


class Endless(Exception):
    """The deadline has passed."""


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    def end(*_: object) -> None:
        raise Endless

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, DEADLINE_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


def prepared(folder: Path, content: str) -> Prepared:
    source, output = folder / "rows", folder / "out"
    source.write_text(content)
    output.mkdir()
    checks = Checks(secrets="Redact", email_addresses="Redact", ibans="Redact")
    recipe = Recipe(checks=checks, cleaning=Cleaning(near_duplicates="Off"))
    return prepare([SourceFile(source)], recipe, output)


@pytest.mark.parametrize("unit", SECRETS.values(), ids=SECRETS)
def test_a_text_of_findings_and_their_heads_only_is_scanned(tmp_path: Path, unit: str) -> None:
    text = unit * (SIZE // len(unit))

    result = prepared(tmp_path, json.dumps({"prompt": "a", "completion": text}) + "\n")

    assert result.valid_rows == 1


def test_a_header_of_very_many_columns_is_read(tmp_path: Path) -> None:
    columns = ["prompt", "completion", *(f"column {number}" for number in range(80_000))]

    result = prepared(tmp_path, ",".join(columns) + "\n" + ",".join("a" * len(columns)) + "\n")

    assert result.kept_rows == 1


def test_a_table_of_quotes_that_do_not_close_is_read(tmp_path: Path) -> None:
    rows = "".join(f'"question {number}\tanswer {number}\n' for number in range(20_000))

    assert prepared(tmp_path, "prompt\tcompletion\n" + rows).kept_rows == 20_000


def test_prose_in_one_line_is_not_a_table(tmp_path: Path) -> None:
    result = prepared(tmp_path, " ".join(f"word {number}," for number in range(150_000)) + "\n")

    assert (result.broken_files, result.kept_rows) == (1, 0)


def test_wrong_calls_of_very_many_tools_are_reported(tmp_path: Path) -> None:
    count = 15_000
    tools: list[Any] = [{"function": {"name": f"tool {number}"}} for number in range(count)]
    calls = [{"function": {"name": "none", "arguments": "{}"}}] * count
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]

    result = prepared(tmp_path, json.dumps({"messages": messages, "tools": tools}) + "\n")

    assert result.invalid_rows == 1
