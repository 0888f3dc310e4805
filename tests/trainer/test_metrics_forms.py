# SPDX-License-Identifier: Apache-2.0
"""Metrics of the form of answers: JSON, patterns and tool calls."""

import json
from typing import Any

import jsonschema
import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.evaluate.metrics import json_fields, json_valid
from finetune_trainer.scoring.answer_formats import AnswerPattern, JSONSchema
from finetune_trainer.scoring.json_text import expected_calls, find_calls

SCHEMA = {
    "type": "object",
    "properties": {
        "team": {"enum": ["billing", "sales"]},
        "amount": {"type": "number"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
    },
    "required": ["team"],
    "additionalProperties": False,
    "$defs": {"line": {"type": "object", "required": ["sku"]}},
}


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"team": "billing"}', True),
        (' [1, "注文", null] \n', True),
        ('"text"', True),
        ("", False),
        ("{'team': 'billing'}", False),
        ('{"team": "billing"', False),
        ('{"team": "billing"} done', False),
        ('```json\n{"team": "billing"}\n```', False),
        ("NaN", False),
        ("[Infinity]", False),
        ("[" * 100_000, False),
        ("9" * 10_000, False),
    ],
)
def test_json_is_valid_if_the_whole_answer_is(answer: str, valid: bool) -> None:
    assert json_valid.value(answer, None) == valid


@pytest.mark.parametrize(
    "value",
    [
        {"team": "billing"},
        {"team": "billing", "amount": 3.5, "lines": [{"sku": "a"}, {"sku": "b", "n": 1}]},
        {"team": "support"},
        {"team": "billing", "lines": [{"n": 1}]},
        {"team": "billing", "other": 1},
        {"amount": 1},
        [],
        "billing",
    ],
)
def test_json_is_valid_by_a_schema_as_jsonschema_says(value: Any) -> None:
    expected = jsonschema.Draft202012Validator(SCHEMA).is_valid(value)

    assert json_valid.value(json.dumps(value), JSONSchema(json.dumps(SCHEMA))) == expected


PATTERNS = {
    "type": "object",
    "properties": {"order": {"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}},
    "patternProperties": {"^x-": {"type": "integer"}},
    "additionalProperties": {"type": "string", "pattern": "a+"},
    "propertyNames": {"pattern": "^[a-z-]*$"},
}


@pytest.mark.parametrize("additional", [PATTERNS["additionalProperties"], False, True, {}])
@pytest.mark.parametrize(
    "value",
    [
        {"order": "AB-12", "x-n": 3, "other": "banana"},
        {"order": "ab-12"},
        {"order": "AB-12 "},
        {"x-n": "three"},
        {"other": "kiwi"},
        {"other": 7},
        {"Other": "banana"},
        {},
        [],
    ],
)
def test_patterns_are_matched_as_jsonschema_matches_them(additional: Any, value: Any) -> None:
    schema = PATTERNS | {"additionalProperties": additional}

    assert JSONSchema(json.dumps(schema)).accepts(value) == jsonschema.Draft202012Validator(schema).is_valid(
        value
    )


def test_the_time_to_match_a_pattern_does_not_grow_exponentially() -> None:
    """Python's re would take years."""
    slow = {"pattern": "^(a+)+$", "patternProperties": {"^(a+)+$": False}, "additionalProperties": False}
    schema = JSONSchema(json.dumps({"anyOf": [slow, {"type": "null"}]}))

    assert not schema.accepts("a" * 100 + "!")
    assert not schema.accepts({"a" * 100 + "!": 1})
    assert schema.accepts("a" * 100)
    assert not schema.accepts("\ud800")


def test_a_schema_names_its_own_draft() -> None:
    draft = "http://json-schema.org/draft-04/schema#"
    exclusive = {"$schema": draft, "minimum": 3, "exclusiveMinimum": True}

    assert not JSONSchema(json.dumps(exclusive)).accepts(3)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (
            '{"properties": {"a": {"pattern": "(?=b)"}}}',
            r"pattern \(\?=b\): RE2 does not support it: ",
        ),
        ('{"patternProperties": {"(a)\\\\1": true}}', "RE2 does not support it: "),
        (
            '{"patternProperties": {"a": true}, "allOf": [{"unevaluatedProperties": false}]}',
            "unevaluatedProperties with patternProperties is not supported",
        ),
        ("{", "Expecting property name"),
        ("[]", "a JSON Schema is an object"),
        ('{"type": "objekt"}', r"\$\.type: 'objekt' is not valid"),
        ('{"$ref": "https://example.com/schema.json"}', "is not in the schema, and others are not read"),
        ('{"properties": {"a": {"$ref": "#/$defs/b"}}}', "is not in the schema"),
        ('{"$defs": {"b": {}, "a": {"$id": "in", "items": {"$ref": "#/$defs/b"}}}}', "is not in the schema"),
        ('{"$schema": "https://example.com/own"}', r"\$schema: https://example.com/own is unknown"),
    ],
)
def test_a_schema_that_cannot_be_used_says_why(schema: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        JSONSchema(schema)


def test_a_field_may_have_the_name_of_a_reference() -> None:
    assert JSONSchema('{"properties": {"$ref": {"type": "string"}}}').accepts({"$ref": "a"})
    assert JSONSchema('{"const": {"$ref": "a"}}').accepts({"$ref": "a"})


def test_a_schema_may_refer_to_itself_and_a_deep_answer_is_not_valid() -> None:
    schema = JSONSchema('{"type": ["array", "null"], "items": {"$ref": "#"}}')

    assert schema.accepts([[], [None]])
    assert not schema.accepts(json.loads("[" * 900 + "]" * 900))


@pytest.mark.parametrize(
    ("answer", "expected", "share"),
    [
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 2}', 1),
        ('{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.5),
        ('{"b": 2, "a": 1, "more": 0}', '{"a": 1, "b": 2}', 1),
        ('{"a": {"b": [1, 2]}, "c": "x"}', '{"a": {"b": [1, 3]}, "c": "x"}', 2 / 3),
        ('{"a": [1]}', '{"a": [1, 2]}', 0.5),
        ('{"a": [2, 1]}', '{"a": [1, 2]}', 0),
        ('{"a": 1.0}', '{"a": 1}', 1),
        ('{"a": true}', '{"a": 1}', 0),
        ('{"a": "1"}', '{"a": 1}', 0),
        ('{"a": null}', '{"a": null}', 1),
        ("{}", '{"a": null}', 0),
        ("{}", "{}", 1),
        ('{"a": []}', '{"a": []}', 1),
        ('{"a": [1]}', '{"a": []}', 0),
        ('{"品": "紅茶"}', '{"品": "紅茶"}', 1),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 1),
        ('```\n{"a": 1}\n```\n', '{"a": 1}', 1),
        ('Here it is:\n```json\n{"a": 1}\n```', '{"a": 1}', 0),
        ("", '{"a": 1}', 0),
        ("no JSON", '{"a": 1}', 0),
        ("[1, 2, 3, 4]", "[1, 2, 3, 5]", 0.75),
        ('"text"', '"text"', 1),
    ],
)
def test_the_share_of_expected_fields(answer: str, expected: str, share: float) -> None:
    assert json_fields.value(answer, {expected}) == share


def test_of_several_accepted_texts_the_most_similar_counts() -> None:
    assert json_fields.value('{"a": 1, "b": 2}', {'{"a": 1, "b": 3}', '{"a": 1, "b": 2}', "text"}) == 1


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON_VALUES)
def test_every_json_value_has_all_its_own_fields(value: Any) -> None:
    assert json_fields.value(json.dumps(value), {json.dumps(value, ensure_ascii=False)}) == 1


@pytest.mark.parametrize(
    ("pattern", "answer", "matches"),
    [
        ("[0-9]{4}", "2026", True),
        ("[0-9]{4}", "in 2026", False),
        (".*[0-9]{4}.*", "in 2026", True),
        (".*", "two\nlines", False),
        ("(?s).*", "two\nlines", True),
        ("注.", "注文", True),
        ("", "", True),
        ("(a+)+", "a" * 5_000 + "b", False),
    ],
)
def test_a_pattern_matches_a_whole_answer_as_re2_does(pattern: str, answer: str, matches: bool) -> None:
    assert AnswerPattern(pattern).matches(answer) == matches == bool(re2.fullmatch(pattern, answer))


@pytest.mark.parametrize("pattern", ["a(", "(?=a)", r"(a)\1"])
def test_a_pattern_that_re2_does_not_support_says_so(pattern: str) -> None:
    with pytest.raises(ValueError, match="RE2 does not support it: "):
        AnswerPattern(pattern)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CALLS = (call("find", city="Zürich", days=2), call("pay", amount={"eur": 5}))
EXPECTED = expected_calls(json.dumps(CALLS))
TAGGED = """<tool_call>
{"name": "find", "arguments": {"city": "Zürich", "days": 2}}
</tool_call>
<tool_call>
{"name": "pay", "arguments": {"amount": {"eur": 5}}}
</tool_call>"""
BARE = r"""I look.
{"name": "pay", "parameters": {"amount": {"eur": 5.0}}};
{"name": "find", "parameters": {"days": 2, "city": "Z\u00fcrich"}}"""
FUNCTIONS = [each["function"] for each in CALLS]


@pytest.mark.parametrize(
    "text",
    [
        TAGGED,
        BARE,
        json.dumps(FUNCTIONS),
        json.dumps([{**each, "arguments": json.dumps(each["arguments"])} for each in FUNCTIONS]),
        json.dumps(CALLS),
    ],
)
def test_calls_are_read_in_any_wrapping_and_order(text: str) -> None:
    assert find_calls(text) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "find Zürich",
        '{"name": "find", "arguments": {"city": "Zürich", "days": 2}}',
        json.dumps([*CALLS, CALLS[0]]),
        json.dumps([call("find", city="Bern", days=2), CALLS[1]]),
        json.dumps([call("look", city="Zürich", days=2), CALLS[1]]),
        json.dumps(CALLS)[:-4],
    ],
)
def test_other_calls_are_no_match(text: str) -> None:
    assert find_calls(text) != EXPECTED


def test_json_without_arguments_is_no_call() -> None:
    assert (
        find_calls('{"name": "Ann", "age": 5} {"arguments": {}} {"name": "x", "arguments": "no JSON"}') == ()
    )
    assert expected_calls(None) == ()
