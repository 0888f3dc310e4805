# SPDX-License-Identifier: Apache-2.0
"""Files of a dataset, and removal of rows from them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune_trainer import canonical_json
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.row_index import SPLIT_NUMBERS
from finetune_trainer.data.split_files import SplitWriter, keep_rows, line_of
from finetune_trainer.rows import SPLIT_FILES, Message, Row, load_rows, parse_row

WRITTEN: list[SplitName] = ["train", "test", "train", "train", "test"]
ROWS = [Row.pair(f"line\nend \u2028 {number}", "x") for number in range(len(WRITTEN))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with SplitWriter(tmp_path) as writer:
        for split, row in zip(WRITTEN, ROWS, strict=True):
            writer.write(split, line_of(row))
    return tmp_path


def test_each_row_is_in_the_file_of_its_split_and_all_files_exist(folder: Path) -> None:
    assert load_rows(folder / "train.jsonl") == [ROWS[0], ROWS[2], ROWS[3]]
    assert load_rows(folder / "test.jsonl") == [ROWS[1], ROWS[4]]
    assert (folder / "validation.jsonl").read_bytes() == b""


def test_other_rows_are_removed_from_their_files(folder: Path) -> None:
    rows = keep_rows(folder, _splits(), np.array([True, True, False, True, False]))

    assert rows == {"train": 2, "validation": 0, "test": 1}
    assert load_rows(folder / "train.jsonl") == [ROWS[0], ROWS[3]]
    assert load_rows(folder / "test.jsonl") == [ROWS[1]]
    assert {path.name for path in folder.iterdir()} == set(SPLIT_FILES.values())


def test_a_file_without_changes_is_not_rewritten(folder: Path) -> None:
    before = (folder / "train.jsonl").stat()

    keep_rows(folder, _splits(), np.array([True, False, True, True, True]))

    after = (folder / "train.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_with_other_rows_than_were_written_is_rejected(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write("{}\n")

    with pytest.raises(ValueError, match="shorter"):
        keep_rows(folder, _splits(), np.array([False, True, True, True, True]))


def _splits() -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    return np.array([SPLIT_NUMBERS[split] for split in WRITTEN], dtype=np.uint8)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
MESSAGES = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    ANY_TEXT,
    st.booleans(),
    st.none() | st.just('[{"function":{"arguments":"{}","name":"f"},"n":1e+16}]'),
    st.none() | ANY_TEXT,
    st.none() | ANY_TEXT,
)
ANY_ROWS = st.builds(Row.pair, ANY_TEXT, ANY_TEXT) | st.builds(
    Row,
    st.lists(MESSAGES, min_size=2, max_size=4).map(tuple),
    st.sampled_from(["ChatMessages", "Preference", "KTO"]),
    st.none() | st.just('[{"n":1e+16,"type":"function"}]'),
    ANY_TEXT,
    st.booleans(),
)


@given(row=ANY_ROWS)
@example(row=Row.pair('"\\/\x7f\u2028\U0001f600\t\n\r\x00\x1f', "é"))
def test_a_line_is_the_canonical_json_of_its_row(row: Row) -> None:
    assert line_of(row) == canonical_json.encode(row.to_dict()) + b"\n"


def test_only_tools_and_calls_are_not_sorted_in_a_line() -> None:
    calls = '[{"type":"function","function":{"name":"find","arguments":{"zone":"n","id":7}}}]'
    tools = '[{"type":"function","function":{"name":"find","parameters":{"zone":{},"id":{}}}}]'
    turns = (Message("user", "Where?"), Message("assistant", "", tool_calls=calls))
    row = Row(turns, tools=tools, columns=(("tools", "x"),))

    line = line_of(row).decode()

    assert line == (
        '{"columns":{"tools":"x"},"messages":[{"content":"Where?","role":"user"},'
        f'{{"content":"","role":"assistant","tool_calls":{calls}}}],"tools":{tools}}}\n'
    )
    assert parse_row(line) == row
