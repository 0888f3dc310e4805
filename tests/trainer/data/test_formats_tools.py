# SPDX-License-Identifier: Apache-2.0
"""Tools and tool calls are learned as their source has them, whatever its container."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.data.recipe import Recipe
from tests.trainer.data.reading import Outcome, json_lines, parquet_bytes, read

FIND = {
    "type": "function",
    "function": {
        "name": "find_bag",
        "description": "Finds a bag by its tag.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string"}, "tag": {"type": "string"}},
            "required": ["tag"],
        },
    },
}
BOAT = {
    "type": "function",
    "function": {
        "name": "next_boat",
        "description": "The next boat.",
        "parameters": {"type": "object", "properties": {"quay": {"type": "integer"}}, "required": []},
    },
}


def calling(tool: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": tool["function"]["name"], "arguments": arguments}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    return {"messages": [{"role": "user", "content": "Please."}, answer], "tools": [tool]}


ROWS = [calling(FIND, {"zone": "north", "tag": "7"}), calling(BOAT, {"quay": 3}), calling(BOAT, {})]


def with_texts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) for name, value in row.items()}


def csv_of(rows: list[dict[str, Any]]) -> str:
    content = io.StringIO()
    table = csv.DictWriter(content, ["messages", "tools"])
    table.writeheader()
    table.writerows(rows)
    return content.getvalue()


def read_clean(folder: Path, content: str | bytes) -> Outcome:
    outcome = read(folder, content)
    assert (outcome.problems, outcome.unused, outcome.format) == ([], (), "ChatMessages")
    return outcome


CALL_AS_TEXT = calling(FIND, {})
CALL_AS_TEXT["messages"][1]["tool_calls"] = json.dumps(ROWS[0]["messages"][1]["tool_calls"])
TOOL_AS_TEXT = {**ROWS[0], "tools": [json.dumps(FIND)]}


@pytest.mark.parametrize(
    "content",
    [
        json_lines(ROWS),
        parquet_bytes(ROWS),
        parquet_bytes(list(map(with_texts, ROWS))),
        parquet_bytes([{**row, "tools": json.dumps(row["tools"])} for row in ROWS]),
        csv_of(list(map(with_texts, ROWS))),
        json_lines([CALL_AS_TEXT, *ROWS[1:]]),
        json_lines([TOOL_AS_TEXT, *ROWS[1:]]),
    ],
    ids=["json", "structs", "texts", "tools as text", "csv", "calls as text", "tool as text"],
)
def test_tools_and_calls_are_those_of_the_source_in_any_container(tmp_path: Path, content: Any) -> None:
    outcome = read_clean(tmp_path, content)

    # As texts, because dicts with another order of their fields are equal.
    assert list(map(json.dumps, outcome.dicts)) == list(map(json.dumps, ROWS))


def test_a_null_that_a_json_source_writes_is_learned(tmp_path: Path) -> None:
    row = calling(FIND, {"zone": None, "tag": "7"})

    assert read_clean(tmp_path, json_lines([row])).dicts == [row]
    assert read_clean(tmp_path, parquet_bytes([with_texts(row)])).dicts == [row]


def test_fields_of_a_tool_have_the_order_of_the_engine_and_none_is_empty(tmp_path: Path) -> None:
    function = {"parameters": None, "strict": True, "description": "It finds.", "name": "find_bag"}
    row = {**calling(FIND, {"tag": "7"}), "tools": [{"function": function}]}

    (read_row,) = read_clean(tmp_path, json_lines([row])).dicts

    assert json.dumps(read_row["tools"]) == json.dumps(
        [{"type": "function", "function": {"name": "find_bag", "description": "It finds.", "strict": True}}]
    )


@pytest.mark.parametrize("empty", ["", " ", "[]"])
def test_a_cell_without_tools_is_a_chat_without_tools(tmp_path: Path, empty: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

    (row,) = read_clean(tmp_path, csv_of([{"messages": json.dumps(turns), "tools": empty}])).rows

    assert row.tools is None


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (
            {"messages": '[{"role": "user"'},
            "messages is text that is not valid JSON (Expecting ',' delimiter",
        ),
        ({"messages": "hello"}, "messages is text; expected a list of messages"),
        ({"messages": '{"role": "user"}'}, "messages is an object; expected a list of messages"),
        (
            {"tools": "[}"},
            "tools is text that is not valid JSON (Expecting value at character 2); ",
        ),
        (
            {"tools": '[{"type": 1, "type": 1}]'},
            "tools is text that is not valid JSON (the field",
        ),
        ({"tools": "[{}]"}, "tools[0].function is missing"),
        ({"tools": "[" * 100_000}, "tools is text that is not valid JSON (nested too deeply)"),
    ],
    ids=range(7),
)
def test_a_cell_that_is_not_json_is_named(tmp_path: Path, cells: dict[str, str], problem: str) -> None:
    outcome = read(tmp_path, csv_of([with_texts(ROWS[0]), {**with_texts(ROWS[0]), **cells}]))

    assert outcome.problems[0].startswith(f"row 2 (line 3): {problem}")
    assert len(outcome.rows) == 1


def test_conversations_of_sharegpt_may_be_json_texts(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]

    outcome = read(tmp_path, parquet_bytes([{"conversations": json.dumps(turns)}]), Recipe())

    assert (outcome.problems, outcome.format) == ([], "ShareGPT")
    assert outcome.rows[0].output == "b"
