# SPDX-License-Identifier: Apache-2.0
"""Tokens and texts of rows, planted wherever a user can, are in nothing that a pod leaves but their report.

The pods are real processes. What they leave is the termination message, the log, and in the store whatever is
neither rows nor the report about them.
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import SourceConfig
from finetune_trainer.contract.vocabulary import ExitCode
from tests.trainer import processes
from tests.trainer.preparing import Preparation, json_lines, pairs
from tests.trainer.processes import Ended

CANARY = "quokka"
"""Text in every row."""
TOKEN = "ghp_" + "kN3mQ8rT5vX2zB7dF4gH9jL6pS1wY0aC3eUq"
"""Text in a form that the checks find."""
ABOUT_ROWS = {"report.json", "report.html", "problems.jsonl", "alike.jsonl"}


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    return Preparation(tmp_path)


def left_by(ended: Ended, store: Path) -> str:
    """Return everything that more people may read than the rows."""
    files = [
        path
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name not in ABOUT_ROWS and "datasets" not in path.parts
    ]
    assert any(path.name == "result.json" for path in files)
    return "\n".join([ended.termination_message, json.dumps(ended.logs), *map(Path.read_text, files)])


def about_rows(store: Path) -> str:
    return "\n".join(path.read_text() for path in store.rglob("*") if path.name in ABOUT_ROWS)


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"{CANARY} question {number}", "completion": f"{CANARY} answer {number}", **fields}


BAD_ROWS: dict[str, list[Any]] = {
    "fields": [row(1), {f"{CANARY} has spaces": 1}, {"prompt": f"{CANARY} {TOKEN}"}, {f"{CANARY}!": "x"}],
    "roles": [{"messages": [{"role": CANARY, "content": "a"}, {"role": "assistant", "content": CANARY}]}],
    "speakers": [{"conversations": [{"from": CANARY, "value": "a"}, {"from": "gpt", "value": CANARY}]}],
    "parts": [{"messages": [{"role": "user", "content": [{"type": CANARY}]}]}],
    "weights": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "weight": CANARY}]}],
    "judged": [row(1, label=CANARY)] * 3 + [row(2, label=True)],
    "calls": [
        {
            "tools": [{"type": "function", "function": {"name": f"a{CANARY}9z9", "parameters": {}}}],
            "messages": [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": CANARY,
                            "function": {"name": CANARY, "arguments": json.dumps({CANARY + " b": TOKEN})},
                        }
                    ],
                },
            ],
        }
    ],
    "repeated": [f'{{"{CANARY}: 1": 1, "{CANARY}: 1": 2}}'],
    "broken": [f'{{"prompt": "{CANARY}'],
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_of_rows_that_cannot_be_used_only_the_report_has_words(preparation: Preparation, kind: str) -> None:
    lines = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in BAD_ROWS[kind])
    source = preparation.write("rows.jsonl", lines)

    ended = processes.run(preparation.config(source, format="KTO" if kind == "judged" else None))

    assert ended.code == ExitCode.BAD_DATA
    assert ended.result.prepare is not None
    assert ended.result.prepare.problems
    left = left_by(ended, preparation.root / "store")
    assert CANARY not in left
    assert TOKEN not in left


def test_a_quoted_value_is_in_the_report(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(BAD_ROWS["roles"]))

    ended = processes.run(preparation.config(source))

    assert ended.result.prepare is not None
    assert ended.result.prepare.problems[0].startswith("row 1: messages[0].role is another text; expected")
    assert f"messages[0].role is '{CANARY}'" in about_rows(preparation.root / "store")


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_the_first_row_of_a_table_without_a_header_is_no_list_of_names(
    preparation: Preparation, name: str
) -> None:
    mark = "\t" if name.endswith("tsv") else ","
    content = "".join(f"Where is {CANARY} {number}?{mark}{CANARY} {TOKEN}\n" for number in range(30))

    ended = processes.run(preparation.config(preparation.write(name, content)))

    assert 'the header has no column "prompt", "completion", but 2 others' in ended.result.message
    left = left_by(ended, preparation.root / "store")
    assert CANARY not in left
    assert TOKEN not in left


def test_names_that_look_like_names_are_said(preparation: Preparation) -> None:
    ended = processes.run(preparation.config(preparation.write("rows.csv", "question,label_2\na,b\n")))

    assert 'no column "prompt", "completion", but "question", "label_2"' in ended.result.message


def test_rows_that_are_taken_leave_no_words_of_theirs_and_a_found_secret_nowhere(
    preparation: Preparation,
) -> None:
    secret = f'{CANARY}: password = "{TOKEN}"'
    rows = [row(number, completion=secret, **{f"a {CANARY}": CANARY}) for number in range(40)]
    source = preparation.write("rows.jsonl", json_lines([*rows, *pairs(1)]))

    ended = processes.run(preparation.config(source))

    assert (ended.code, ended.result.outcome) == (0, "Succeeded")
    assert ended.result.prepare is not None
    warnings = "\n".join(ended.result.prepare.warnings)
    assert "rows have the same completion; expected completions that depend on the prompt" in warnings
    left = left_by(ended, preparation.root / "store")
    assert CANARY not in left
    report = about_rows(preparation.root / "store")
    assert CANARY in report
    assert TOKEN not in left + report
    assert "[SECRET]" in report


def test_a_signature_in_the_uri_is_in_nothing_that_a_pod_leaves(preparation: Preparation) -> None:
    uri = f"https://reader:{TOKEN}@127.0.0.1:1/rows.jsonl?X-Signature={TOKEN[::-1]}"
    config = preparation.config(SourceConfig(uri=uri))

    with processes.start(config) as process:
        process.read_until("retrying in")
        process.send_signal(signal.SIGTERM)
        ended = process.finish()

    assert ended.code == ExitCode.PREEMPTED_SAVED
    assert TOKEN not in json.dumps(ended.logs)
    assert TOKEN[::-1] not in json.dumps(ended.logs)
