# SPDX-License-Identifier: Apache-2.0
"""orjson reads JSON that it reads like Python's reader; Python's reader reads the rest."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.containers.json_records import Decoder, quick_fields

TEXTS = st.text(st.characters(), max_size=6) | st.sampled_from(
    ['":', '" :', "a", '\\"', "\ud800", "\x00", "\x7f"]
)
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**30, -0.0, 1e400, math.nan, math.inf])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
PIECES = st.sampled_from(
    [
        *("{", "}", "[", "]", ",", ":", " ", "\t", "\n", "\v", "\ufeff", "\u2028"),
        *(
            '"a"',
            '"\\u0061"',
            '"b"',
            '"":',
            '"a":',
            '"a" :',
            '"\\ud83d\\ude00"',
            '"\\ud83d"',
            '"\x01"',
            '"\\x"',
        ),
        *("1", "-0", "01", "1.5", "1e5", "1E400", "18446744073709551616", "NaN", "-Infinity", "true", "nul"),
    ]
)


def by_python(line: bytes) -> Any:
    decoder = Decoder()
    return decoder.fields(decoder.decode(line.decode()), "")


def check(line: bytes) -> None:
    quick = quick_fields(line)
    if quick is not None:
        assert repr(quick) == repr(by_python(line))


@settings(max_examples=200, deadline=None)
@given(
    value=st.dictionaries(TEXTS, VALUES, max_size=4) | VALUES,
    is_ascii=st.booleans(),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]),
)
def test_any_value_is_read_as_python_reads_it(
    value: Any, is_ascii: bool, separators: tuple[str, str]
) -> None:
    check(json.dumps(value, ensure_ascii=is_ascii, separators=separators).encode(errors="surrogatepass"))


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(PIECES, max_size=9), is_object=st.booleans())
def test_any_text_is_read_as_python_reads_it_or_left_to_python(pieces: list[str], is_object: bool) -> None:
    text = "".join(pieces)
    check((f"{{{text}}}" if is_object else text).encode())


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "\\u0061": 2}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a" : 1, "b": 2, "a" : 3}',
        b'{"a": [{"b" :1}, {"b": 2, "b" :3}]}',
        b'{"a": 1.0}',
        b'{"a": 1e2}',
        b'{"a": 18446744073709551616}',
        b'{"a": NaN}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": "\x01"}',
        b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
        b"[1]",
        b"",
    ],
)
def test_lines_that_python_may_read_differently_are_left_to_python(line: bytes) -> None:
    assert quick_fields(line) is None


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": "a: \\"b\\" \xc3\xa9\\ud83d\\ude00", "completion": "c", "id": 18446744073709551615}',
        b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null}],"n":-1}\r\n',
    ],
)
def test_usual_rows_are_read_quickly(line: bytes) -> None:
    quick = quick_fields(line)

    assert quick is not None
    assert quick == by_python(line)
