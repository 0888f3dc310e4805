# SPDX-License-Identifier: Apache-2.0
"""Pairs and preferences with lists of messages, as in TRL and in the OpenAI API."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.data.row_problems import Code
from tests.trainer.data.reading import Outcome, json_lines, parquet_bytes, read, turns

PAIR: dict[str, Any] = {
    "prompt": [{"role": "system", "content": "Be short."}, *turns("a", "b", "c")],
    "completion": turns("d", roles=("assistant",)),
}
PREFERENCE: dict[str, Any] = {
    "input": {"messages": turns("a"), "tools": [], "parallel_tool_calls": True},
    "preferred_output": turns("b", roles=("assistant",)),
    "non_preferred_output": turns("c", roles=("assistant",)),
}


def read_json(folder: Path, *rows: Any) -> Outcome:
    return read(folder, json_lines(rows))


@pytest.mark.parametrize("content", [json_lines([PAIR]), parquet_bytes([PAIR])], ids=["json", "parquet"])
def test_only_the_completions_turns_of_a_conversation_are_learned(
    tmp_path: Path, content: str | bytes
) -> None:
    outcome = read(tmp_path, content)

    assert outcome.problems == []
    assert outcome.format in ("PromptCompletion", "Parquet")
    assert outcome.dicts == [
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "weight": 0},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "d"},
            ]
        }
    ]


def test_a_prompts_text_may_have_messages_as_its_completion(tmp_path: Path) -> None:
    outcome = read_json(tmp_path, {"prompt": "a", "completion": turns("b", roles=("assistant",))})

    assert outcome.dicts == [{"messages": turns("a", "b")}]


def test_a_completion_may_call_tools(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    row = {
        "prompt": turns("a"),
        "completion": [{"role": "assistant", "content": None, "tool_calls": [call]}],
        "tools": [{"type": "function", "function": {"name": "look"}}],
    }

    outcome = read_json(tmp_path, row)

    assert (outcome.problems, outcome.unused) == ([], ())
    assert outcome.rows[0].tools is not None


def test_issues_of_a_conversation_name_its_turn(tmp_path: Path) -> None:
    outcome = read_json(
        tmp_path,
        {**PAIR, "prompt": turns("a", "b")},
        {**PAIR, "completion": turns("d", "e", roles=("assistant", "user"))},
        {**PAIR, "prompt": [{"role": "robot", "content": "a"}]},
        {**PAIR, "completion": 5},
    )

    assert [problem.split(";")[0] for problem in outcome.problems] == [
        "row 1: completion[0] is from assistant",
        "row 2: completion ends with user",
        "row 3: prompt[0].role is 'robot'",
        "row 4: completion is a number",
    ]


@pytest.mark.parametrize(
    "content",
    [json_lines([PREFERENCE]), parquet_bytes([{**PREFERENCE, "input": {"messages": turns("a")}}])],
    ids=["json", "parquet"],
)
def test_preferences_of_openai_are_found_by_their_fields(tmp_path: Path, content: str | bytes) -> None:
    outcome = read(tmp_path, content)

    assert (outcome.format, outcome.problems, outcome.unused) == ("Preference", [], ())
    assert outcome.dicts == [{"prompt": "a", "chosen": "b", "rejected": "c"}]


def test_issues_of_a_preference_of_openai_name_its_fields(tmp_path: Path) -> None:
    outcome = read_json(
        tmp_path,
        PREFERENCE,
        {**PREFERENCE, "input": {}},
        {**PREFERENCE, "input": {"messages": turns("a"), "tools": [{"type": "function"}]}},
        {**PREFERENCE, "non_preferred_output": PREFERENCE["preferred_output"]},
        {**PREFERENCE, "preferred_output": turns("b")},
    )

    assert outcome.codes == [Code.FIELD_MISSING, Code.UNSUPPORTED, Code.FIELD_VALUE, Code.TURN_ORDER]
    assert [problem.split(";")[0] for problem in outcome.problems][1:] == [
        "row 3: input.tools is not supported",
        "row 4: preferred_output and non_preferred_output are the same",
        "row 5: preferred_output ends with user",
    ]
