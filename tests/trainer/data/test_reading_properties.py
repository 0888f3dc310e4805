# SPDX-License-Identifier: Apache-2.0
"""Properties for all inputs: nothing crashes the reader, and rows are read back as they were written."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.reading import LocatedRow
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.row_problems import InvalidRecord
from finetune_trainer.rows import Row, parse_row
from tests.trainer.data.reading import (
    DEFAULT,
    Outcome,
    chat,
    gzipped,
    json_lines,
    pairs,
    parquet_bytes,
    read,
    zstandarded,
)

FORMATS: tuple[DataFormat, ...] = get_args(DataFormat)
recipes = st.sampled_from(
    [
        DEFAULT,
        *(Recipe(format=form) for form in FORMATS),
        Recipe(names=FieldNames(template="{prompt} {text}")),
    ]
)

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(str.strip)
ROWS = st.lists(st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS}), min_size=1, max_size=8)

FIELDS = """prompt completion messages role content weight tool_calls tools function name arguments id type
chosen rejected label labels text instruction input output system history conversations from value annotations
data result from_name choices was_cancelled annotation_id annotator lead_time functions tool_call_id"""
NAMES = st.sampled_from(tuple(re.findall(r"\w+", FIELDS))) | st.text(st.characters(), max_size=2)
WORDS = st.sampled_from(
    [
        "user",
        "assistant",
        "system",
        "tool",
        "human",
        "gpt",
        "function",
        "choices",
        "textarea",
        "text",
        "{}",
        "1",
    ]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)
SHAPES = [
    pairs(1)[0],
    chat("a", "b"),
    {"chosen": "a", "rejected": "b"},
    {"conversations": [{"from": "human", "value": "a"}]},
    {"annotations": [{"result": []}], "data": {"text": "a"}},
    {"text": "a", "annotation_id": 1, "lead_time": 1, "annotator": 1},
    {"id": 1, "text": "a", "label": ["b"]},
]
RECORDS = st.builds(
    lambda shape, more: {**shape, **more}, st.sampled_from(SHAPES), st.dictionaries(NAMES, VALUES)
)

FILES = [
    json_lines(pairs(3)).encode(),
    json.dumps(pairs(3)).encode(),
    json_lines([chat("a", "b")]).encode(),
    b'prompt,completion\na,"b"\n',
    b'prompt\tcompletion\na\t"b"\n',
    parquet_bytes(pairs(3)),
    gzipped(json_lines(pairs(3))),
    zstandarded(json_lines(pairs(3))),
]


def read_bytes(content: bytes, recipe: Recipe) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return read(Path(folder), content, recipe)


def check(outcome: Outcome) -> None:
    """Only valid rows result, which can be written and read again, and problems that can be printed."""
    for item in outcome.items:
        assert isinstance(item, LocatedRow | InvalidRecord)
        if isinstance(item, InvalidRecord):
            assert item.issues
            "".join(f"{issue} {issue.column}" for issue in item.issues).encode()
        else:
            assert isinstance(item.raw, RawRow)
            assert parse_row(item.raw.row.to_line()) == item.raw.row
            item.raw.row.to_line().encode()
    "".join(outcome.unused).encode()


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), recipe=recipes)
@example(content=b"PAR1PAR1", recipe=DEFAULT)
@example(content=b"[" * 5000, recipe=DEFAULT)
@example(content=b"\xef\xbb\xbf", recipe=DEFAULT)
def test_no_bytes_crash_the_reader(content: bytes, recipe: Recipe) -> None:
    check(read_bytes(content, recipe))


@settings(max_examples=100, deadline=None)
@given(
    content=st.sampled_from(FILES),
    recipe=recipes,
    at=st.floats(0, 1, exclude_max=True),
    change=st.binary(max_size=3),
    cut=st.integers(0, 3),
)
def test_no_damage_crashes_the_reader(
    content: bytes, recipe: Recipe, at: float, change: bytes, cut: int
) -> None:
    place = int(at * len(content))

    check(read_bytes(content[:place] + change + content[place + cut :], recipe))


@settings(max_examples=100, deadline=None)
@given(records=st.lists(RECORDS | VALUES, min_size=1, max_size=4), recipe=recipes, as_list=st.booleans())
def test_no_json_crashes_the_reader(records: list[Any], recipe: Recipe, as_list: bool) -> None:
    content = json.dumps(records) if as_list else json_lines(records)

    check(read_bytes(content.encode(), recipe))


def table(rows: list[dict[str, str]], separator: str) -> bytes:
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, fieldnames=["prompt", "completion"], delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue().encode()


WRITERS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    "JSON Lines": lambda rows: json_lines(rows).encode(),
    "JSON list": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1).encode(),
    "CSV": lambda rows: table(rows, ","),
    "TSV": lambda rows: table(rows, "\t"),
    "Parquet": parquet_bytes,
    "gzip": lambda rows: gzipped(json_lines(rows)),
    "zstd": lambda rows: zstandarded(table(rows, ",")),
}


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_rows_come_back_as_they_were_written(kind: str, rows: list[dict[str, str]]) -> None:
    outcome = read_bytes(WRITERS[kind](rows), DEFAULT)

    assert outcome.problems == []
    assert outcome.rows == [Row.pair(row["prompt"], row["completion"]) for row in rows]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, weights=st.lists(st.booleans(), min_size=8, max_size=8))
def test_prepared_rows_are_rows_again(rows: list[dict[str, str]], weights: list[bool]) -> None:
    messages = []
    for row, is_learned in zip(rows, weights, strict=False):
        messages += chat(row["prompt"], row["completion"])["messages"]
        if not is_learned and row is not rows[-1]:
            messages[-1]["weight"] = 0
    (written,) = read_bytes(json_lines([{"messages": messages}]).encode(), DEFAULT).rows

    assert read_bytes(written.to_line().encode(), DEFAULT).rows == [written]
