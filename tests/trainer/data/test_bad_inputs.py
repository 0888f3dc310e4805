# SPDX-License-Identifier: Apache-2.0
"""Bad rows and files: each is reported with its position, the issue, what was expected and what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.files import MAX_ROW_BYTES
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.row_problems import Code
from tests.trainer.data.reading import (
    DEFAULT,
    chat,
    gzipped,
    json_lines,
    pairs,
    parquet_bytes,
    read,
    read_files,
    turns,
    zstandarded,
)

GOOD = json.dumps({"prompt": "a", "completion": "b"})

LINES: list[tuple[bytes, Code, str]] = [
    (
        b'{"prompt": "a", "completion" "b"}',
        Code.SYNTAX,
        "not valid JSON at column 30: Expecting ':' delimiter; expected one JSON object on each line;",
    ),
    (b'["a", "b"]', Code.SYNTAX, "is a list; expected one JSON object on each line; put the fields in { }"),
    (b'"a"', Code.SYNTAX, "is text; expected one JSON object"),
    (b"17", Code.SYNTAX, "is a number; expected one JSON object"),
    (b"{}", Code.FIELD_MISSING, '"prompt" is missing (it is an empty object); expected the field "prompt"'),
    (b'{"completion": "b"}', Code.FIELD_MISSING, '"prompt" is missing (it has "completion")'),
    (
        b'{"prompt": "a", "label": "b"}',
        Code.FIELD_MISSING,
        '"completion" is missing (it has "prompt", "label"); expected the field "completion"; add it, or set',
    ),
    (
        b'{"prompt": "", "completion": "b"}',
        Code.FIELD_EMPTY,
        "prompt is empty; expected text; fill prompt in, or remove the row",
    ),
    (b'{"prompt": "a", "completion": " \\n"}', Code.FIELD_EMPTY, "completion is empty; expected text"),
    (
        b'{"prompt": 7, "completion": "b"}',
        Code.FIELD_TYPE,
        "prompt is a number; expected text; write prompt as a string",
    ),
    (b'{"prompt": "a", "completion": null}', Code.FIELD_TYPE, "completion is null; expected text"),
    (b'{"prompt": "a", "completion": true}', Code.FIELD_TYPE, "completion is true or false; expected text"),
    (
        b'{"prompt": ["a"], "completion": "b"}',
        Code.FIELD_TYPE,
        "prompt[0] is text; expected an object with role and content",
    ),
    (b'{"prompt": {"a": 1}, "completion": "b"}', Code.FIELD_TYPE, "prompt is an object; expected text"),
    (
        b'{"prompt": "a\\u0000", "completion": "b"}',
        Code.CONTROL_CHARACTER,
        "prompt has the control character U+0000 at character 2; expected text without control characters",
    ),
    (
        b'{"prompt": "a\\u001b[1m", "completion": "b"}',
        Code.CONTROL_CHARACTER,
        "prompt has the control character U+001B",
    ),
    (
        b'{"prompt": "a \\ud83d", "completion": "b"}',
        Code.BROKEN_CHARACTER,
        "prompt has the unpaired surrogate U+D83D at character 3; expected complete characters; export",
    ),
    (
        b'{"prompt": "a", "prompt": "c", "completion": "b"}',
        Code.SYNTAX,
        'not valid JSON: the field "prompt" occurs twice',
    ),
    (
        b'{"prompt": "a", "completion": "b", "meta": {"x": 1, "x": 2}}',
        Code.SYNTAX,
        'not valid JSON: the field "x" occurs twice',
    ),
    (
        b'{"prompt": "caf\xe9", "completion": "b"}',
        Code.ENCODING,
        "byte 16 (0xE9) is not UTF-8; expected UTF-8; save the file as UTF-8",
    ),
    (
        b'{"messages": [{"role": "user", "content": "a"}]}',
        Code.FORMATS_MIXED,
        'is a chat row, with "messages"; expected prompt and completion, as in the other rows; use one form',
    ),
    (
        b'{"\\ud83d": 1, "completion": "b"}',
        Code.FIELD_MISSING,
        '"prompt" is missing (it has "\\ud83d", "completion")',
    ),
    (b'{"n": ' + b"9" * 5000 + b"}", Code.SYNTAX, "not valid JSON: Exceeds the limit"),
    (b'{"a":' * 100_000, Code.SYNTAX, "nested too deeply"),
    (
        b'{"prompt": "' + b"a" * (2 * MAX_ROW_BYTES) + b'"}',
        Code.ROW_TOO_LONG,
        "longer than 16 MiB; expected one JSON object on each line; check the line ends",
    ),
]


@pytest.mark.parametrize(("line", "code", "problem"), LINES, ids=range(len(LINES)))
def test_a_bad_line_is_reported_with_its_number(
    tmp_path: Path, line: bytes, code: Code, problem: str
) -> None:
    outcome = read(tmp_path, GOOD.encode() + b"\n\n" + line + b"\n" + GOOD.encode())

    assert len(outcome.rows) == 2
    assert len(outcome.invalid) == 1
    assert outcome.problems[0].startswith(f"row 3: {problem}")
    assert outcome.codes[0] is code
    assert not outcome.invalid[0].ends_file


def test_all_issues_of_a_row_are_reported_with_their_columns(tmp_path: Path) -> None:
    outcome = read(tmp_path, json_lines([{"prompt": "", "completion": 3}]))

    assert [(issue.column, issue.code) for issue in outcome.invalid[0].issues] == [
        ("prompt", Code.FIELD_EMPTY),
        ("completion", Code.FIELD_TYPE),
    ]


def test_a_bad_row_in_one_of_several_files_names_the_file(tmp_path: Path) -> None:
    files = {"a.jsonl": json_lines(pairs(2)), "b.jsonl": json_lines([*pairs(1), {"prompt": ""}])}

    assert read_files(tmp_path, files).problems[0].startswith("b.jsonl row 2: prompt is empty")


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def call(name: Any = "weather", arguments: Any = "{}", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **fields}


def calling(*calls: Any, then: Any = None, **fields: Any) -> dict[str, Any]:
    """A conversation in which the assistant calls tools, and what follows."""
    answer = [{"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "It is sunny."}]
    return {
        "messages": [
            {"role": "user", "content": "How is the weather?"},
            {"role": "assistant", "content": None, "tool_calls": list(calls)},
            *(answer if then is None else then),
        ],
        **fields,
    }


CHATS: list[tuple[Any, Code, str]] = [
    (
        {"messages": []},
        Code.FIELD_EMPTY,
        "messages is an empty list; expected a list of messages; give the turns as a list",
    ),
    ({"messages": "hello"}, Code.FIELD_TYPE, "messages is text; expected a list of messages"),
    (
        {"prompt": "a", "completion": "b"},
        Code.FORMATS_MIXED,
        'is a prompt with its completion; expected "messages", as in the other rows; use one form per',
    ),
    ({"text": "a"}, Code.FIELD_MISSING, '"messages" is missing (it has "text")'),
    (
        {"messages": ["hello"]},
        Code.FIELD_TYPE,
        "messages[0] is text; expected an object with role and content; correct it",
    ),
    (
        chat("a", "b", roles=("user", "bot")),
        Code.ROLE,
        "messages[1].role is 'bot'; expected system, user, assistant or tool; correct the role",
    ),
    (chat("a", "b", roles=("user", 7)), Code.ROLE, "messages[1].role is 7"),  # type: ignore[arg-type]
    ({"messages": [{"content": "a"}]}, Code.ROLE, "messages[0].role is missing"),
    (
        {"messages": [{"role": "user"}]},
        Code.FIELD_MISSING,
        "messages[0].content is missing; expected text; add the content",
    ),
    (chat("a", ""), Code.FIELD_EMPTY, "messages[1].content is empty"),
    (
        {"messages": [*turns("a"), {"role": "assistant", "content": None}]},
        Code.FIELD_TYPE,
        "messages[1].content is null",
    ),
    (
        chat("a"),
        Code.NOTHING_TO_LEARN,
        "messages has no assistant turn; expected an answer to learn; add the assistant's answer",
    ),
    (
        chat("a", "b", "c"),
        Code.TURN_ORDER,
        "messages ends with user; expected the assistant's turn last; add the answer",
    ),
    (
        chat("a", "b", "c", roles=("user", "user", "assistant")),
        Code.TURN_ORDER,
        "messages[1] is from user; expected assistant: user and assistant take turns; merge or reorder",
    ),
    (
        chat("a", "b", roles=("assistant",)),
        Code.TURN_ORDER,
        "messages[0] is from assistant; expected user: user and assistant take turns",
    ),
    (
        chat("a", "b", "c", roles=("user", "system", "assistant")),
        Code.TURN_ORDER,
        "messages[1] is a system message; expected system first only; move or remove it",
    ),
    # Parts of messages.
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, *turns("b")]},
        Code.UNSUPPORTED,
        "messages[0].content[0] is of the type 'image_url'; expected parts of text only",
    ),
    (
        {"messages": [{"role": "user", "content": ["hello"]}]},
        Code.UNSUPPORTED,
        "messages[0].content[0] is not a text part; expected parts of text only",
    ),
    ({"messages": [{"role": "user", "content": []}]}, Code.FIELD_EMPTY, "messages[0].content is empty"),
    # Weights.
    (
        {"messages": [*turns("a"), {"role": "assistant", "content": "b", "weight": 0}]},
        Code.NOTHING_TO_LEARN,
        "messages has no assistant turn of weight 1; expected an answer to learn; give the last turn",
    ),
    (
        {"messages": [*turns("a", "b", "c"), {"role": "assistant", "content": "d", "weight": 0}]},
        Code.NOTHING_TO_LEARN,
        (
            "messages ends with a turn of weight 0; expected weight 1 for the last turn, which "
            "evaluation uses; end the conversation with the last turn of weight 1"
        ),
    ),
    (
        {"messages": [*turns("a"), {"role": "assistant", "content": "b", "weight": 0.5}]},
        Code.FIELD_VALUE,
        "messages[1].weight is 0.5; expected 0 or 1; correct it",
    ),
    (
        {"messages": [*turns("a"), {"role": "assistant", "content": "b", "weight": True}]},
        Code.FIELD_VALUE,
        "messages[1].weight is true or false; expected 0 or 1",
    ),
    (
        {"messages": [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b"}]},
        Code.FIELD_VALUE,
        "messages[0].weight is in a turn of user; expected weight in the assistant's turns only; remove it",
    ),
    # Tools.
    ({**chat("a", "b"), "tools": "weather"}, Code.TOOL_CALL, "tools is text; expected a list of tools"),
    (
        {**chat("a", "b"), "tools": [{"name": "weather"}]},
        Code.TOOL_CALL,
        'tools[0].function is missing; expected {"type": "function", "function": {"name": …}}; write it in',
    ),
    (
        {**chat("a", "b"), "tools": [{"type": "function", "function": {}}]},
        Code.TOOL_CALL,
        "tools[0].function.name is missing; expected text; add the name",
    ),
    (
        {**chat("a", "b"), "tools": [{"type": "web_search"}]},
        Code.TOOL_CALL,
        "tools[0].type is 'web_search'; expected function",
    ),
    (
        {**chat("a", "b"), "functions": [{"name": "weather"}]},
        Code.UNSUPPORTED,
        "functions is not supported; expected rows without functions; use tools and tool_calls",
    ),
    (
        {"messages": [*turns("a"), {"role": "assistant", "content": "b", "function_call": {"name": "x"}}]},
        Code.UNSUPPORTED,
        "messages[1].function_call is not supported; expected rows without function_call; use tools and",
    ),
    (
        {"messages": [*turns("a"), {"role": "function", "name": "weather", "content": "b"}]},
        Code.UNSUPPORTED,
        "messages[1].role function is not supported; expected rows without role function; use tools and",
    ),
    (
        calling(call("time"), tools=[WEATHER]),
        Code.TOOL_CALL,
        (
            "messages[1].tool_calls[0].function.name is 'time', which is not one of the row's tools; "
            'expected one of "weather"; add the tool, or correct the name'
        ),
    ),
    (
        calling(call(arguments='{"city": ')),
        Code.TOOL_CALL,
        (
            "messages[1].tool_calls[0].function.arguments is text that is not valid JSON"
            " (Expecting value at character 10); expected an object, or its JSON; correct it"
        ),
    ),
    (
        calling(call(arguments='["Paris"]')),
        Code.TOOL_CALL,
        "messages[1].tool_calls[0].function.arguments is a list; expected an object, or its JSON",
    ),
    (
        calling({"id": "1", "function": {"name": "weather"}}),
        Code.TOOL_CALL,
        "messages[1].tool_calls[0].function.arguments is null; expected an object, or its JSON",
    ),
    (
        calling("weather"),
        Code.TOOL_CALL,
        (
            "messages[1].tool_calls[0] is text; expected "
            '{"type": "function", "function": {"name": …, "arguments": …}}; correct it'
        ),
    ),
    (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [call()]}, *turns("b")]},
        Code.TOOL_CALL,
        "messages[0].tool_calls is in a turn of user; expected tool_calls of the assistant only",
    ),
    (
        {
            "messages": [
                *turns("a"),
                {"role": "tool", "content": "sunny"},
                {"role": "assistant", "content": "b"},
            ]
        },
        Code.TOOL_CALL,
        (
            "messages[1] is from tool, but the turn before it makes no tool call; expected tool turns only "
            "after an assistant turn with tool_calls; add the tool_calls, or remove it"
        ),
    ),
    (
        calling(call(), then=turns("thanks", "welcome")),
        Code.TOOL_CALL,
        "messages[2] is from user; expected tool: the response to the tool_calls before it; add the",
    ),
    (
        calling(
            call(id="call_1"),
            then=[
                {"role": "tool", "tool_call_id": "call_2", "content": "sunny"},
                {"role": "assistant", "content": "b"},
            ],
        ),
        Code.TOOL_CALL,
        "messages[2].tool_call_id is 'call_2', which no call before it has; expected the id of one of the",
    ),
    (
        calling(call(arguments={"city": "\ud83d"})),
        Code.BROKEN_CHARACTER,
        "messages[1].tool_calls has an unpaired surrogate; expected complete characters",
    ),
    (
        calling(call(arguments={"degrees": float("nan")})),
        Code.TOOL_CALL,
        "messages[1].tool_calls cannot be written as JSON; expected texts, finite numbers, lists and objects",
    ),
]


@pytest.mark.parametrize(("row", "code", "problem"), CHATS, ids=range(len(CHATS)))
def test_a_bad_chat_is_reported_with_its_number(tmp_path: Path, row: Any, code: Code, problem: str) -> None:
    outcome = read(tmp_path, json_lines([chat("a", "b"), chat("c", "d"), row]))

    assert outcome.format == "ChatMessages"
    assert len(outcome.rows) == 2
    assert outcome.problems[0].startswith(f"row 3: {problem}")
    assert outcome.codes[0] is code


TABLES: list[tuple[bytes, Code, str]] = [
    (
        b"a,b,c\n",
        Code.FIELD_COUNT,
        "has 3 fields; expected 2, as in the header; put texts with commas",
    ),
    (b"a\n", Code.FIELD_COUNT, "has 1 fields; expected 2, as in the header; add the missing fields"),
    (
        b'"a\n"b,c\n',
        Code.SYNTAX,
        "not valid CSV: ',' expected after '\"'; expected RFC 4180; write a quote inside a quoted text",
    ),
    (b",b\n", Code.FIELD_EMPTY, "prompt is empty"),
    (b"caf\xe9,b\n", Code.ENCODING, "prompt has the byte 0xE9, which is not UTF-8; expected UTF-8; save the"),
    (b"a\x00,b\n", Code.CONTROL_CHARACTER, "prompt has the control character U+0000"),
]


@pytest.mark.parametrize(("record", "code", "problem"), TABLES, ids=range(len(TABLES)))
@pytest.mark.parametrize("separator", [b",", b"\t"], ids=["CSV", "TSV"])
def test_a_bad_record_is_reported_with_its_number_and_first_line(
    tmp_path: Path, separator: bytes, record: bytes, code: Code, problem: str
) -> None:
    content = b'prompt,completion\n"two\nlines",b\n\n' + record + b"c,d\n"
    if separator == b"\t":
        problem = problem.replace("','", "'\t'").replace("commas", "tabs").replace("CSV", "TSV")
        problem = problem.replace("4180", "4180 with tabs")

    outcome = read(tmp_path, content.replace(b",", separator))

    assert len(outcome.rows) == 2
    assert outcome.problems[0].startswith(f"row 2 (line 5): {problem}")
    assert outcome.codes == [code]


def test_an_unclosed_quote_is_reported_with_its_line_and_ends_the_file(tmp_path: Path) -> None:
    outcome = read(tmp_path, 'prompt,completion\na,b\n"c,d\n' + "e,f\n" * 10)

    assert outcome.problems[0].startswith("row 2 (line 3): a quote that opens here is not closed")
    assert outcome.invalid[0].ends_file


def test_an_unclosed_quote_in_a_long_file_is_not_kept_in_memory(tmp_path: Path) -> None:
    outcome = read(tmp_path, b'prompt,completion\na,"' + b"b" * (MAX_ROW_BYTES + 10))

    assert outcome.problems[0].startswith("row 1 (line 2): a quote that opens here is not closed")


def labeled(**fields: Any) -> dict[str, Any]:
    return {"id": 1, "text": "a", "label": ["b"], **fields}


def task(*results: Any, **fields: Any) -> dict[str, Any]:
    """A task of Label Studio."""
    annotations = [{"id": 7, "was_cancelled": False, "result": list(results)}]
    return {"id": 1, "data": {"text": "a"}, "annotations": annotations, **fields}


def choice(*choices: str, name: str = "intent") -> dict[str, Any]:
    return {"from_name": name, "to_name": "text", "type": "choices", "value": {"choices": list(choices)}}


def flat(**fields: Any) -> dict[str, Any]:
    """A task of JSON_MIN."""
    return {"id": 1, "text": "a", "annotator": 1, "annotation_id": 7, "lead_time": 2.5, **fields}


ALPACA = {"instruction": "a", "output": "b"}
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
PREFERENCE = {"prompt": "a", "chosen": "b", "rejected": "c"}
KTO_ROW = {"prompt": "a", "completion": "b", "label": True}

RECORDS: list[tuple[DataFormat, Any, Any, Code, str]] = [
    (
        "Alpaca",
        ALPACA,
        {"instruction": "a"},
        Code.FIELD_MISSING,
        '"output" is missing (it has "instruction")',
    ),
    (
        "Alpaca",
        ALPACA,
        {**ALPACA, "instruction": " "},
        Code.FIELD_EMPTY,
        "instruction is empty; expected text",
    ),
    ("Alpaca", ALPACA, {**ALPACA, "input": 7}, Code.FIELD_TYPE, "input is a number; expected text"),
    (
        "Alpaca",
        ALPACA,
        {**ALPACA, "history": "earlier"},
        Code.FIELD_TYPE,
        "history is text; expected a list of [instruction, output] pairs; correct it",
    ),
    (
        "Alpaca",
        ALPACA,
        {**ALPACA, "history": [["a"]]},
        Code.FIELD_TYPE,
        "history[0] is a list of 1; expected an [instruction, output] pair; correct it",
    ),
    ("Alpaca", ALPACA, {**ALPACA, "history": [["a", ""]]}, Code.FIELD_EMPTY, "history[0][1] is empty"),
    (
        "ShareGPT",
        SHAREGPT,
        {"conversations": []},
        Code.FIELD_EMPTY,
        "conversations is an empty list; expected a list of messages",
    ),
    (
        "ShareGPT",
        SHAREGPT,
        {"conversations": [{"from": "alien", "value": "a"}]},
        Code.ROLE,
        "conversations[0].from is 'alien'; expected human, gpt or system; correct the role",
    ),
    (
        "ShareGPT",
        SHAREGPT,
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]},
        Code.UNSUPPORTED,
        (
            "conversations[1].from is 'function_call', which is not supported; expected human, gpt "
            "or system; "
            "write the rows as messages with tool_calls"
        ),
    ),
    (
        "ShareGPT",
        SHAREGPT,
        {"conversations": [{"from": "gpt", "value": "a"}]},
        Code.TURN_ORDER,
        "conversations[0] is from gpt; expected human: human and gpt take turns; merge or reorder the turns",
    ),
    (
        "ShareGPT",
        SHAREGPT,
        {"conversations": [{"from": "human", "value": ""}]},
        Code.FIELD_EMPTY,
        "conversations[0].value is empty; expected text; fill conversations[0].value in, or remove the row",
    ),
    (
        "ShareGPT",
        SHAREGPT,
        {**SHAREGPT, "tools": "[{}]"},
        Code.UNSUPPORTED,
        "tools is not supported; expected rows without tools; write the rows as messages with tool_calls",
    ),
    (
        "ShareGPT",
        SHAREGPT,
        {"system": "s", "conversations": [{"from": "system", "value": "t"}, *SHAREGPT["conversations"]]},
        Code.TURN_ORDER,
        "conversations[0] is a system message, and the row also has system; expected one system message;",
    ),
    (
        "ShareGPT",
        SHAREGPT,
        {"conversations": ["a"]},
        Code.FIELD_TYPE,
        "conversations[0] is text; expected an",
    ),
    (
        "LabelStudio",
        task(choice("x")),
        task(),
        Code.FIELD_MISSING,
        "has no annotation; expected an annotation that was not cancelled; annotate it, or remove the row",
    ),
    (
        "LabelStudio",
        task(choice("x")),
        {**task(), "annotations": [{"was_cancelled": True, "result": [choice("x")]}]},
        Code.FIELD_MISSING,
        "has no annotation; expected an annotation that was not cancelled",
    ),
    (
        "LabelStudio",
        task(choice("x")),
        task(choice("x"), choice("y", name="tone")),
        Code.FIELD_MISSING,
        'the completion may be any of "intent", "tone"; expected the name of the control tag; name it in',
    ),
    (
        "LabelStudio",
        task(choice("x")),
        task({"from_name": "span", "type": "labels", "value": {"start": 0, "end": 1, "labels": ["X"]}}),
        Code.UNSUPPORTED,
        "span is of the type 'labels'; expected the answer of Choices or TextArea; name another control tag",
    ),
    (
        "LabelStudio",
        task(choice("x")),
        task({"from_name": "reply", "type": "textarea", "value": {"text": ["b", "c"]}}),
        Code.FIELD_VALUE,
        "reply has 2 texts; expected one text; keep one",
    ),
    (
        "LabelStudio",
        task(choice("x")),
        task(choice("x"), data={"review": "a", "title": "b"}),
        Code.FIELD_MISSING,
        '"text" is missing (it has "review", "title"); expected the field "text"; add it, or map another',
    ),
    (
        "LabelStudio",
        task(choice("x")),
        task(choice("x"), data="a"),
        Code.FIELD_TYPE,
        "data is text; expected an",
    ),
    (
        "LabelStudio",
        flat(intent="x"),
        flat(intent=3),
        Code.UNSUPPORTED,
        "intent is a number; expected the answer of Choices or TextArea",
    ),
    ("LabelStudio", flat(intent="x"), flat(annotation_id=None), Code.FIELD_MISSING, "has no annotation"),
    (
        "LabelStudio",
        flat(intent="x"),
        flat(),
        Code.FIELD_MISSING,
        "has no answer of a control tag; expected an answer; annotate it, or name the tag in columns",
    ),
    (
        "Doccano",
        labeled(),
        labeled(label=[]),
        Code.FIELD_MISSING,
        "label has no label; expected one label; annotate it, or remove the row",
    ),
    (
        "Doccano",
        labeled(),
        labeled(label=["x", "y"]),
        Code.FIELD_VALUE,
        "label has 2 labels; expected one label; keep",
    ),
    (
        "Doccano",
        labeled(),
        labeled(label=[[0, 4, "ORG"]]),
        Code.UNSUPPORTED,
        "label marks parts of the text; expected text classification or sequence to sequence; export a",
    ),
    ("Doccano", labeled(), labeled(text=""), Code.FIELD_EMPTY, "text is empty"),
    ("Preference", PREFERENCE, {"prompt": "a", "chosen": "b"}, Code.FIELD_MISSING, '"rejected" is missing'),
    ("Preference", PREFERENCE, {"chosen": "b", "rejected": "c"}, Code.FIELD_MISSING, '"prompt" is missing'),
    (
        "Preference",
        PREFERENCE,
        {**PREFERENCE, "rejected": "b"},
        Code.FIELD_VALUE,
        "chosen and rejected are the same; expected two answers of which one is better; remove the row",
    ),
    (
        "Preference",
        PREFERENCE,
        {"chosen": turns("a", "b"), "rejected": turns("x", "c")},
        Code.FIELD_VALUE,
        "chosen and rejected differ before their last turns; expected the same conversation up to the answer",
    ),
    (
        "Preference",
        PREFERENCE,
        {"prompt": turns("a"), "chosen": turns("b"), "rejected": turns("c")},
        Code.TURN_ORDER,
        "chosen ends with user; expected the assistant's turn last",
    ),
    (
        "Preference",
        PREFERENCE,
        {**PREFERENCE, "tools": [WEATHER]},
        Code.UNSUPPORTED,
        "tools is not supported; expected rows without tools; remove it",
    ),
    (
        "Preference",
        PREFERENCE,
        {
            "prompt": turns("a"),
            "chosen": [{"role": "assistant", "content": "b", "tool_calls": [call()]}],
            "rejected": turns("c", roles=("assistant",)),
        },
        Code.UNSUPPORTED,
        "chosen[0].tool_calls is not supported; expected rows without tool_calls",
    ),
    (
        "KTO",
        KTO_ROW,
        {**KTO_ROW, "label": "good"},
        Code.FIELD_TYPE,
        "label is 'good'; expected true for a good answer or false for a bad one; correct label",
    ),
    ("KTO", KTO_ROW, {"prompt": "a", "completion": "b"}, Code.FIELD_MISSING, '"label" is missing (it has'),
    ("KTO", KTO_ROW, {**KTO_ROW, "completion": []}, Code.FIELD_EMPTY, "completion is an empty list"),
]


@pytest.mark.parametrize("case", RECORDS, ids=range(len(RECORDS)))
@pytest.mark.parametrize("forced", [True, False], ids=["forced", "detected"])
def test_a_bad_record_of_each_format_is_reported(
    tmp_path: Path, forced: bool, case: tuple[DataFormat, Any, Any, Code, str]
) -> None:
    form, good, bad, code, problem = case
    recipe = Recipe(format=form) if forced else DEFAULT

    outcome = read(tmp_path, json_lines([good, good, bad]), recipe)

    assert outcome.format == form
    assert len(outcome.rows) == 2
    assert outcome.problems[0].startswith(f"row 3: {problem}")
    assert outcome.codes[0] is code


FILES: list[tuple[bytes, Code, str]] = [
    (b"", Code.FILE_EMPTY, "the file is empty; expected at least one row; add rows"),
    (b"\n \n", Code.FILE_EMPTY, "the file is empty; expected at least one row; add rows"),
    (
        b"\xff\xfep\x00r\x00",
        Code.FILE_UNKNOWN,
        "the file is UTF-16 text; expected JSON Lines or CSV in UTF-8; save it as UTF-8",
    ),
    (b"\xff\xfe\x00\x00p\x00\x00\x00", Code.FILE_UNKNOWN, "the file is UTF-32 text"),
    (
        b"PK\x03\x04...",
        Code.FILE_DAMAGED,
        "the workbook is damaged: it has no end; expected a complete .xlsx file; save it again",
    ),
    (b"%PDF-1.7", Code.FILE_UNKNOWN, "the file is PDF; expected JSON Lines or CSV in UTF-8; export the rows"),
    (
        b'{\n "prompt": "a"\n}',
        Code.FILE_UNKNOWN,
        "the file has JSON objects that span several lines; expected one JSON object on each line; convert",
    ),
    (
        b"hello\n",
        Code.FILE_UNKNOWN,
        "the file has one column: its first line has no comma, semicolon or tab, and is not a JSON object",
    ),
    (b"prompt|completion\na|b\n", Code.HEADER, 'the header is separated by "|"; expected commas'),
    (
        b'{"text": "a", "label": "b"}',
        Code.FILE_UNKNOWN,
        (
            'the rows have the fields "text", "label"; expected "prompt" and "completion", or "messages"; set'
            " columns: {prompt: text, completion: label}"
        ),
    ),
    (
        b"text,label\na,b\n",
        Code.HEADER,
        (
            'the header has no column "prompt", "completion", but "text", "label"; expected the '
            'columns "prompt", "completion"; set columns: {prompt: text, completion: label}'
        ),
    ),
    (
        b"text\tlabel\na\tb\n",
        Code.HEADER,
        'the header has no column "prompt", "completion", but "text", "label"',
    ),
    (
        b"prompt,completion,prompt\na,b,c\n",
        Code.HEADER,
        'the header has "prompt" twice; expected each name once; rename one of the columns',
    ),
    (b"prompt,compl\xe9tion\na,b\n", Code.ENCODING, 'the header is not UTF-8: "prompt", "compl\\udce9tion"'),
    (
        parquet_bytes([{"text": "a"}]),
        Code.HEADER,
        'the header has no column "prompt", "completion", but "text"',
    ),
    (parquet_bytes(pairs(3))[:-8], Code.FILE_DAMAGED, "the file is damaged: Parquet magic bytes not found"),
    (
        gzipped(parquet_bytes(pairs(3))),
        Code.FILE_UNKNOWN,
        "the file is compressed by gzip; expected Parquet without it, because Parquet compresses its columns",
    ),
    (
        zstandarded(parquet_bytes(pairs(3))),
        Code.FILE_UNKNOWN,
        "the file is compressed by zstd; expected Parquet without it",
    ),
    (
        gzipped(json_lines(pairs(3)))[:-9],
        Code.FILE_DAMAGED,
        (
            "the file cannot be unpacked to its end: it ends in the middle of its compressed content; "
            "none of its rows was used; expected a complete file; compress or copy it again"
        ),
    ),
    (
        zstandarded(json_lines(pairs(3)))[:-3],
        Code.FILE_DAMAGED,
        "the file cannot be unpacked to its end: it ends",
    ),
    (b"\x1f\x8b\x08junk", Code.FILE_DAMAGED, "the file cannot be unpacked to its end: it"),
    (gzipped(gzipped("{}")), Code.FILE_UNKNOWN, "the file is compressed by gzip twice; expected"),
]


@pytest.mark.parametrize(("content", "code", "problem"), FILES, ids=range(len(FILES)))
def test_an_unreadable_file_is_reported_with_its_kind(
    tmp_path: Path, content: bytes, code: Code, problem: str
) -> None:
    outcome = read(tmp_path, content)

    assert outcome.rows == []
    assert len(outcome.invalid) == 1
    assert outcome.problems[0].startswith(f"file: {problem}")
    assert outcome.codes == [code]
    assert outcome.invalid[0].ends_file


LISTS: list[tuple[str, int, Code, str]] = [
    ('[{GOOD}, "a"]', 1, Code.SYNTAX, "is text; expected a list of JSON objects; put the fields in { }"),
    ('[{GOOD}, {{"prompt": ""}}, {GOOD}]', 2, Code.FIELD_EMPTY, "prompt is empty"),
    (
        '[{GOOD}, {{"prompt": "a", "prompt": "a"}}, {GOOD}]',
        2,
        Code.SYNTAX,
        'not valid JSON: the field "prompt" occurs twice',
    ),
    (
        '[{GOOD},\n {{"prompt": "a" "b"}}, {GOOD}]',
        1,
        Code.SYNTAX,
        "not valid JSON at line 2 column 17: Expecting ',' delimiter; nothing after it was read; expected",
    ),
    ("[{GOOD}\n{GOOD}]", 1, Code.SYNTAX, "not valid JSON at line 2 column 1: Expecting ']'"),
    ("[{GOOD},]", 1, Code.SYNTAX, "not valid JSON at line 1 column 37: Expecting value"),
    (
        '[{GOOD}, {{"prompt": "a',
        1,
        Code.FILE_ENDS_EARLY,
        'the file ends before the list is closed; expected "]" at the end; export or copy the file again',
    ),
    ("[{GOOD}", 1, Code.FILE_ENDS_EARLY, "the file ends before the list is closed"),
    (
        "[{GOOD}] {GOOD}",
        1,
        Code.SYNTAX,
        "the file has content after the end of the list, at line 1 column 38",
    ),
    ('[{GOOD}, {{"a": "\udce9"}}, {GOOD}]', 2, Code.ENCODING, "has the byte 0xE9, which is not UTF-8"),
    (
        '[{GOOD}, {{"prompt": "\\ud83d"}}]',
        1,
        Code.BROKEN_CHARACTER,
        "prompt has the unpaired surrogate U+D83D",
    ),
    ("[{GOOD}, " + "[" * 100_000, 1, Code.SYNTAX, "nested too deeply; nothing after it was read"),
    ("[{GOOD}, " + "9" * 5000 + "]", 1, Code.SYNTAX, "not valid JSON: Exceeds the limit"),
    ('[{GOOD}, "' + "a" * (MAX_ROW_BYTES + (1 << 20)), 1, Code.ROW_TOO_LONG, "longer than 16 MiB"),
]


@pytest.mark.parametrize(("content", "rows", "code", "problem"), LISTS, ids=range(len(LISTS)))
def test_a_bad_second_value_of_a_json_list_is_reported(
    tmp_path: Path, content: str, rows: int, code: Code, problem: str
) -> None:
    filled = content.replace("{GOOD}", GOOD).replace("{{", "{").replace("}}", "}")

    outcome = read(tmp_path, filled.encode(errors="surrogateescape"))

    assert len(outcome.rows) == rows
    assert outcome.problems[0].startswith(f"row 2: {problem}")
    assert outcome.codes[0] is code


PARQUET: list[tuple[Any, Code, str]] = [
    ({"prompt": 7}, Code.FIELD_TYPE, "prompt is a number; expected text; write prompt as a string in quotes"),
    ({"prompt": True}, Code.FIELD_TYPE, "prompt is true or false; expected text"),
    ({"prompt": b"a"}, Code.FIELD_TYPE, "prompt is bytes; expected text"),
    ({"prompt": ["a"]}, Code.FIELD_TYPE, "prompt[0] is text; expected an object with role and content"),
    ({"prompt": None}, Code.FIELD_TYPE, "prompt is null; expected text"),
]


@pytest.mark.parametrize(("fields", "code", "problem"), PARQUET, ids=range(len(PARQUET)))
def test_a_bad_row_of_parquet_is_reported_with_its_number(
    tmp_path: Path, fields: Any, code: Code, problem: str
) -> None:
    outcome = read(tmp_path, parquet_bytes([{"completion": "b", **fields}]))

    assert outcome.format == "Parquet"
    assert outcome.problems[0].startswith(f"row 1: {problem}")
    assert outcome.codes[0] is code


def test_rows_before_the_damage_of_a_compressed_file_are_read_and_the_last_is_named(tmp_path: Path) -> None:
    content = gzipped(json_lines(pairs(50_000)))

    outcome = read(tmp_path, content[: len(content) // 2])

    last = outcome.items[-2].position.record
    assert last is not None
    assert last > 10_000
    assert outcome.problems == [
        (
            "file: the file cannot be unpacked to its end: it ends in the middle of its "
            f"compressed content; no row after row {last} was used; expected a complete file; "
            "compress or copy it again"
        )
    ]


def test_damage_in_the_middle_of_parquet_names_the_last_row(tmp_path: Path) -> None:
    content = bytearray(
        parquet_bytes(pairs(3000), row_group_size=1000, write_page_checksum=True, use_dictionary=False)
    )
    content[len(content) // 2] ^= 0xFF

    outcome = read(tmp_path, bytes(content))

    assert len(outcome.rows) == 1000
    assert outcome.problems[0].startswith("file: the file is damaged: ")
    assert "no row after row 1000 was used" in outcome.problems[0]


FORCED: list[tuple[DataFormat, bytes, str]] = [
    (
        "CSV",
        b"prompt|completion\na|b\n",
        'file: the header is separated by "|"; expected commas; export it again separated by commas',
    ),
    ("TSV", b"prompt;completion\na;b\n", 'file: the header is separated by ";"; expected tabs; export it'),
    ("CSV", b"prompt\tcompletion\na\tb\n", "file: the header is separated by tabs; expected commas"),
    ("TSV", b"prompt,completion\na,b\n", "file: the header is separated by commas; expected tabs; export it"),
    (
        "CSV",
        parquet_bytes(pairs(1)),
        "file: the file is Parquet; expected CSV, as format says; leave format out",
    ),
    (
        "Parquet",
        json_lines(pairs(1)).encode(),
        "file: the file is not Parquet; expected Parquet, which begins with PAR1; leave format out",
    ),
    ("PromptCompletion", b"hello\n", "row 1: not valid JSON at column 1: Expecting value"),
    ("ChatMessages", json_lines(pairs(1)).encode(), "row 1: is a prompt with its completion; expected"),
    ("ChatMessages", b'{\n "messages": []\n}', "file: the file has JSON objects that span several lines"),
    ("Alpaca", b"text,label\na,b\n", 'file: the header has no column "instruction", "output", but "text"'),
    ("ShareGPT", json_lines(pairs(1)).encode(), 'row 1: "conversations" is missing (it has "prompt"'),
]


@pytest.mark.parametrize(("form", "content", "problem"), FORCED, ids=range(len(FORCED)))
def test_a_file_in_another_format_than_forced_is_reported(
    tmp_path: Path, form: DataFormat, content: bytes, problem: str
) -> None:
    assert read(tmp_path, content, Recipe(format=form)).problems[0].startswith(problem)


SUBJECT_AND_BODY = Recipe(names=FieldNames(template="{subject}\n{body}"))
GROUPED = Recipe(division=Split(group_by="customer"))
DIVIDED = Recipe(division=Split(column="part"))
PAIR = pairs(1)[0]

RECIPES: list[tuple[Recipe, str, str]] = [
    (
        SUBJECT_AND_BODY,
        "id,text,completion\n1,a,b\n",
        (
            'file: the header has no column "subject", "body", which template names, but "id", "text", '
            '"completion"; expected the columns "subject", "body"; name the right columns in template'
        ),
    ),
    (
        SUBJECT_AND_BODY,
        json_lines([{"subject": "a", "completion": "b"}]),
        (
            'row 1: "body", which template names, is missing (it has "subject", "completion"); '
            "expected the field "
            '"body"; add it, or correct template'
        ),
    ),
    (
        SUBJECT_AND_BODY,
        "subject,body,completion\n,,b\n",
        'row 1 (line 2): "subject", "body", which template names, are all empty; expected text; fill one in',
    ),
    (
        SUBJECT_AND_BODY,
        json_lines([{"subject": ["a"], "body": "b", "completion": "c"}]),
        "row 1: subject[0] is text; expected an object with role and content; correct it",
    ),
    (
        SUBJECT_AND_BODY,
        json_lines([{"subject": "a\u0007", "body": "b", "completion": "c"}]),
        "row 1: subject has the control character U+0007 at character 2",
    ),
    (
        GROUPED,
        json_lines([PAIR]),
        "row 1: customer, which split.groupBy names, is missing; expected text or a whole number; fill",
    ),
    (GROUPED, json_lines([{**PAIR, "customer": ""}]), "row 1: customer, which split.groupBy names, is empty"),
    (
        GROUPED,
        json_lines([{**PAIR, "customer": 1.5}]),
        "row 1: customer, which split.groupBy names, is a number",
    ),
    (
        GROUPED,
        "prompt,completion\na,b\n",
        'file: the header has no column "customer", but "prompt", "completion"; expected the column',
    ),
    (
        DIVIDED,
        json_lines([{**PAIR, "part": "holdout"}]),
        "row 1: part, which split.column names, is 'holdout'; expected train, validation or test; correct",
    ),
    (DIVIDED, json_lines([PAIR]), "row 1: part, which split.column names, is missing"),
    (DIVIDED, "prompt,completion\na,b\n", 'file: the header has no column "part"'),
    (
        Recipe(division=Split(from_files=True)),
        json_lines([PAIR]),
        "file: the file name rows has no split; expected a name that begins with train, validation",
    ),
    (
        Recipe(names=FieldNames(label="good")),
        json_lines([{**PAIR, "good": 2}]),
        "row 1: good is 2; expected true",
    ),
    (
        Recipe(names=FieldNames(chosen="better", rejected="worse")),
        json_lines([{"prompt": "a", "better": "b", "worse": "b"}]),
        "row 1: better and worse are the same",
    ),
]


@pytest.mark.parametrize(("recipe", "content", "problem"), RECIPES, ids=range(len(RECIPES)))
def test_names_in_the_recipe_that_the_rows_lack_are_reported(
    tmp_path: Path, recipe: Recipe, content: str, problem: str
) -> None:
    assert read(tmp_path, content, recipe).problems[0].startswith(problem)


def test_files_must_have_one_format(tmp_path: Path) -> None:
    files = {"a.jsonl": json_lines(pairs(2)), "b.csv": "prompt,completion\na,b\n"}

    outcome = read_files(tmp_path, files)

    assert outcome.problems == [
        "b.csv: the file is CSV; expected PromptCompletion, as the first file; use one format per source"
    ]
    assert outcome.codes == [Code.FORMATS_MIXED]
    assert outcome.invalid[0].ends_file


@pytest.mark.parametrize(
    ("content", "mark"),
    [
        ("prompt|completion\na|b\n", '"|"'),
    ],
)
def test_a_table_with_another_separator_is_reported_with_it(tmp_path: Path, content: str, mark: str) -> None:
    (problem,) = read(tmp_path, content).problems

    assert f"the header is separated by {mark}; expected commas; export it again" in problem
