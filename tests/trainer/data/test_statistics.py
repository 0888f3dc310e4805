# SPDX-License-Identifier: Apache-2.0
"""Statistics of the rows, and warnings about all rows together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import Cleaning, Split
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data import duplicates
from finetune_trainer.data.dataset_warnings import (
    labels_not_held_out,
    near_constant_completions,
    not_held_out,
    similar_labels,
    summary_issues,
)
from finetune_trainer.data.duplicates import Selection, select
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.result import Bucket, CharacterLengths, Label, RowChanges, SourceChanges
from finetune_trainer.data.row_index import SPLITS, RowIndex
from finetune_trainer.data.row_problems import Code, RowPosition
from finetune_trainer.data.split_files import SplitWriter, line_of
from finetune_trainer.data.statistics import compute_statistics, lengths
from finetune_trainer.data.version_comparison import EarlierVersion, compare
from finetune_trainer.rows import SPLIT_FILES, Message, Row
from tests.trainer.data.reading import reader

NO_SPLITS = Recipe(division=Split(validation=0, test=0), cleaning=Cleaning(near_duplicates="Off"))


def test_lengths_cover_the_kept_rows() -> None:
    index, selection = _index([("ab", "c"), ("ab", "c"), ("abcdef", "cd")])

    facts = compute_statistics(index, selection, redacted_rows=1)

    assert (facts.duplicate_rows, facts.redacted_rows, facts.near_duplicate_rows) == (1, 1, None)
    assert (facts.prompt_characters.mean, facts.prompt_characters.max) == (4.0, 6)
    assert facts.prompt_characters.median == 4.0
    assert (facts.completion_characters.mean, facts.completion_characters.max) == (1.5, 2)
    assert facts.distinct_completions == 2


def test_labels_are_counted_per_split_by_descending_frequency() -> None:
    index, selection = _index(
        [("a", "no"), ("b", "yes"), ("c", "yes"), ("d", "yes")], ["train", "train", "test", "train"]
    )

    labels = compute_statistics(index, selection, 0).labels

    assert [(label.completion, dict(label.rows)) for label in labels] == [
        ("yes", {"train": 2, "validation": 0, "test": 1}),
        ("no", {"train": 1, "validation": 0, "test": 0}),
    ]


def test_fifty_distinct_completions_are_labels_and_fifty_one_are_not() -> None:
    fifty = [(f"a{number}", f"label {number}") for number in range(50)]

    assert len(compute_statistics(*_index(fifty), 0).labels) == 50
    more = compute_statistics(*_index([*fifty, ("b", "one more")]), 0)
    assert (more.labels, more.distinct_completions) == ((), 51)


def test_a_long_label_is_truncated() -> None:
    (label,) = compute_statistics(*_index([("a", "x" * 300)]), 0).labels

    assert label.completion == "x" * 199 + "…"


def test_buckets_have_round_edges_and_increasing_width() -> None:
    assert lengths(np.array([0, 3, 40, 40, 999], dtype=np.uint32)).histogram == tuple(
        Bucket(start, end, rows)
        for start, end, rows in [
            (0, 1, 1),
            (1, 2, 0),
            (2, 4, 1),
            (4, 6, 0),
            (6, 10, 0),
            (10, 20, 0),
            (20, 40, 0),
            (40, 60, 2),
            (60, 100, 0),
            (100, 200, 0),
            (200, 400, 0),
            (400, 600, 0),
            (600, 1000, 1),
        ]
    )


def test_no_rows_have_no_lengths() -> None:
    assert lengths(np.array([], dtype=np.uint32)) == CharacterLengths()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_every_row_is_in_one_of_at_most_twenty_buckets(characters: list[int]) -> None:
    found = lengths(np.array(characters, dtype=np.uint32))

    assert sum(bucket.rows for bucket in found.histogram) == len(characters)
    assert len(found.histogram) <= 20
    assert found.histogram[0].start == 0
    assert found.histogram[-1].start <= max(characters) < found.histogram[-1].end
    edges = [bucket.start for bucket in found.histogram]
    assert edges == sorted(set(edges))
    assert [bucket.end for bucket in found.histogram[:-1]] == edges[1:]


def test_many_rows_in_every_split_cause_no_warning() -> None:
    rows = [(f"a{number}", f"b{number}") for number in range(300)]
    splits: list[SplitName] = [SPLITS[number % 3] for number in range(300)]

    assert _warnings(rows, splits, Recipe()) == []


@pytest.mark.parametrize(
    ("rows", "splits", "recipe", "warning"),
    [
        (
            [("a", "b")],
            ["train"],
            NO_SPLITS,
            (
                "there is only 1 row; expected at least 200 good rows; "
                "start with 200–500 rows, measure, then scale: with fewer rows, scores mean little"
            ),
        ),
        (
            [("a", "b")],
            ["train"],
            Recipe(division=Split(test=0)),
            (
                "no row is in the validation split; expected some rows to evaluate with; "
                "add rows, or set split.validation: 0"
            ),
        ),
        (
            [("a", "b")],
            ["train"],
            Recipe(division=Split(test=0, from_files=True)),
            "no row is in the test split; expected some rows to evaluate with; add rows with the split test",
        ),
        (
            [("a", "b"), ("a", "c")],
            ["train"] * 2,
            NO_SPLITS,
            (
                "1 row has the same input as an earlier row, and another answer; "
                "expected one answer per input; keep the correct row"
            ),
        ),
        (
            [("a", "b"), ("a", "b")],
            ["train", "test"],
            NO_SPLITS,
            (
                "1 row had the input of a held-out row and was removed; "
                "expected each input in one split; find out where they come from, if there are many"
            ),
        ),
    ],
)
def test_warnings_name_what_is_expected(
    rows: list[tuple[str, str]], splits: list[SplitName], recipe: Recipe, warning: str
) -> None:
    assert warning in _warnings(rows, splits, recipe)


def test_a_search_of_a_part_of_the_rows_causes_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_BYTES", 0)
    monkeypatch.setattr(duplicates, "MIN_ROWS", 1)

    assert _warnings([("a", "b"), ("c", "b")], ["train"] * 2, Recipe())[-1] == (
        "near duplicates were searched in 1 of 2 rows, those with the rarest answers, because the search of"
        " all would take too much memory; divide the rows among several Datasets to search all of them, or"
        " set cleaning.nearDuplicates: Off"
    )


def test_a_dataset_that_only_trains_says_why_nothing_is_held_out() -> None:
    index, selection = _index([("a", "b")])
    issues = summary_issues(
        index, selection, {"train": 1, "validation": 0, "test": 0}, Recipe(), only_trains=True
    )

    assert [str(issue) for issue in issues if issue.code == Code.EMPTY_SPLIT] == [
        f"no row is in the {split} split, because every source has splits: TrainOnly; expected some rows to"
        f" evaluate with; set splits: All in a source with rows to hold out, or set split.{split}: 0"
        for split in ("validation", "test")
    ]


SPLIT_ROWS: dict[SplitName, int] = {"train": 20, "validation": 0, "test": 10}


def test_labels_without_held_out_rows_are_named() -> None:
    rows = [(f"a{number}", "xyz"[number % 3]) for number in range(30)]
    splits: list[SplitName] = ["test" if number % 3 == 0 else "train" for number in range(30)]
    index, selection = _index(rows, splits)
    facts = compute_statistics(index, selection, 0)

    assert [label.completion for label in not_held_out(facts.labels, SPLIT_ROWS, "test")] == ["y", "z"]
    assert not not_held_out(facts.labels, SPLIT_ROWS, "validation")
    (found,) = labels_not_held_out(facts.labels, SPLIT_ROWS)

    assert str(found) == (
        "2 of 3 answers have no row in the test split: 'y' (10 for training), 'z' (10 for training);"
        " expected some rows per answer; add rows, raise split.test, or choose another split.seed; scores"
        " do not cover these answers"
    )


def test_mostly_unique_completions_are_not_labels() -> None:
    rows = [(f"a{number}", f"b{number}") for number in range(30)]
    splits: list[SplitName] = ["train" if number else "test" for number in range(30)]
    index, selection = _index(rows, splits)

    facts = compute_statistics(index, selection, 0)

    assert not list(labels_not_held_out(facts.labels, {"train": 29, "validation": 0, "test": 1}))


def test_kto_rows_with_only_one_label_cause_a_warning() -> None:
    rows = [replace(Row.pair(f"a{number}", "b"), form="KTO", label=True) for number in range(3)]
    index = RowIndex()
    for number, row in enumerate(rows):
        index.add(row, "train", 0, number + 1)
    selection = select(index, reader(rows), Cleaning(near_duplicates="Off"), [RowPosition()])

    warnings = [str(issue) for issue in summary_issues(index, selection, {"train": 3}, NO_SPLITS)]

    assert any("every row has the label true" in text for text in warnings)


def test_near_rows_cause_a_warning() -> None:
    selection = Selection(
        keep=np.ones(300, dtype=bool),
        duplicates=0,
        leaked=2,
        near_leaked=1,
        conflicting=0,
        near_duplicates=4,
        near_search=None,
        leaks=np.zeros(300, dtype=bool),
        index=RowIndex(),
        files=[RowPosition()],
        pairs=(),
    )

    def warnings(recipe: Recipe) -> list[str]:
        return [str(issue) for issue in summary_issues(_index_of(300), selection, {"train": 300}, recipe)]

    assert warnings(Recipe()) == [
        (
            "3 rows had the input of a held-out row (1 of them nearly) and were removed; "
            "expected each input in one split; find out where they come from, if there are many"
        ),
        (
            "4 rows have nearly the same input and the same answer as an earlier row; "
            "expected rows that differ; set cleaning.nearDuplicates: Remove to remove them"
        ),
    ]
    assert warnings(Recipe(cleaning=Cleaning(near_duplicates="Remove"))) == warnings(Recipe())[:1]


def test_nearly_constant_completions_cause_a_warning() -> None:
    def issue(same: int, other: int) -> str | None:
        rows = [(f"a{number}", "ok") for number in range(same)]
        rows += [(f"b{number}", f"other {number}") for number in range(other)]
        found = near_constant_completions(*_index(rows))
        return None if found is None else str(found)

    assert issue(19, 1) == (
        "19 of 20 rows have the same completion 'ok'; expected completions that depend on the prompt; "
        "add rows with other completions, or remove some of these; a model learns to always give this answer"
    )
    assert issue(18, 2) is None
    assert issue(19, 0) is None
    assert issue(0, 0) is None


def test_different_tool_calls_without_a_text_are_different_completions() -> None:
    def rows(tags: Sequence[str]) -> tuple[RowIndex, Selection]:
        index, found = RowIndex(), []
        for number, tag in enumerate(tags):
            function = {"name": "look", "arguments": {"tag": tag}}
            # The order of fields is not part of a call.
            call = {"type": "function", "function": dict(sorted(function.items(), reverse=bool(number % 2)))}
            calls = json.dumps([call])
            found.append(Row((Message("user", f"a{number}"), Message("assistant", "", tool_calls=calls))))
            index.add(found[-1], "train", 0, number + 1)
        return index, select(index, reader(found), NO_SPLITS.cleaning, [RowPosition()])

    assert near_constant_completions(*rows([f"tag {number}" for number in range(40)])) is None
    assert compute_statistics(*rows(["x", "y"]), 0).distinct_completions == 2
    issue = near_constant_completions(*rows(["same"] * 40))
    assert issue is not None
    assert '40 of 40 rows have the same completion \'[{"function":{"arguments":' in issue.what


def _label(text: str, rows: int = 1) -> Label:
    return Label(text, {"train": rows, "validation": 0, "test": 0})


def test_labels_that_look_the_same_are_named_with_their_hidden_characters() -> None:
    labels = [
        *(_label("billing", 9), _label("Billing ", 3), _label("dispatch", 7), _label("re  open", 2)),
        *(
            _label("re\u00a0open", 1),
            _label("caf\u00e9", 4),
            _label("cafe\u0301", 2),
            _label("x\u200by"),
            _label("xy"),
        ),
    ]

    (issue,) = similar_labels(labels)

    assert issue.what.partition(": they")[0] == "8 answers look the same"
    assert issue.what.endswith(
        ": 'billing' (9 rows) and 'Billing␣' (3 rows); 're␣␣open' (2 rows) and 're\\u00a0open' (1 row);"
        " 'caf\\u00e9' (4 rows) and 'cafe\\u0301' (2 rows); 'x\\u200by' (1 row) and 'xy' (1 row)"
    )
    assert "billing" not in issue.public


def test_labels_that_differ_visibly_or_in_what_is_not_shown_cause_no_warning() -> None:
    labels = [_label("billing"), _label("billings"), *(_label("x" * 199 + "…") for _ in range(2))]

    assert list(similar_labels([*labels, _label("[SECRET]"), _label("[SECRET]")])) == []


Origins = Sequence[tuple[str, Mapping[SplitName, int]]]
"""Sources, and their rows per split."""


def test_a_version_differs_by_added_removed_and_changed_rows(tmp_path: Path) -> None:
    before = [("same", "a"), ("changed", "b"), ("removed", "c"), ("moved", "d")]
    after = [("moved", "d"), ("changed", "x"), ("same", "a"), ("added", "e"), ("added", "e"), ("added", "f")]
    with SplitWriter(tmp_path) as writer:
        for number, row in enumerate(before):
            writer.write(SPLITS[number % 3], line_of(Row.pair(*row)))
    index, selection = _index(after)

    sources = np.array([0, 1, 0, 0, 1, 1])
    compared = compare(
        index, selection.keep, _earlier(tmp_path), np.zeros(len(after), dtype=np.int64), ["one"]
    )
    origins: Origins = [("one", {"train": 1, "validation": 1, "test": 1}), ("gone", {"train": 1})]
    by_source = compare(index, selection.keep, _earlier(tmp_path, origins), sources, ["one", "two"])

    assert compared == RowChanges(previous="abc", added=2, removed=1, changed=1)
    # The first of two equal rows stays, with its source.
    assert by_source == replace(
        compared,
        sources=(
            SourceChanges(name="one", added=1, removed=1, changed=0),
            SourceChanges(name="two", added=1, removed=0, changed=1),
        ),
    )


def test_removed_rows_of_a_source_that_is_gone_are_counted_for_it(tmp_path: Path) -> None:
    with SplitWriter(tmp_path) as writer:
        for number in range(5):
            writer.write("train", line_of(Row.pair(f"a{number}", "b")))
    index, selection = _index([("a0", "b"), ("a1", "b")])
    origins: Origins = [("kept", {"train": 2}), ("gone", {"train": 3})]

    difference = compare(
        index, selection.keep, _earlier(tmp_path, origins), np.zeros(2, dtype=np.int64), ["kept"]
    )
    unknown = compare(
        index,
        selection.keep,
        _earlier(tmp_path, [("kept", {"train": 1}), ("gone", {"train": 1})]),
        np.zeros(2, dtype=np.int64),
        ["kept"],
    )

    assert difference.sources == (SourceChanges(name="gone", added=0, removed=3, changed=0),)
    assert (unknown.removed, unknown.sources) == (3, ())


def test_rows_of_every_form_are_equal_when_they_are_read_again(tmp_path: Path) -> None:
    turns = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"))
    call = '[{"function":{"arguments":"{}","name":"f"},"id":"1","type":"function"}]'
    rows = [
        Row.pair("u", "a"),
        Row(turns, tools='[{"type":"function"}]'),
        Row(
            (
                turns[1],
                Message("assistant", "", learned=False, tool_calls=call),
                Message("tool", "t", tool_call_id="1", name="f"),
                turns[2],
            )
        ),
        Row(turns, "Preference", rejected="r"),
        Row(turns, "KTO", label=False),
    ]
    index = RowIndex()
    with SplitWriter(tmp_path) as writer:
        for number, row in enumerate(rows):
            writer.write("train", line_of(row))
            index.add(row, "train", 0, number + 1)

    difference = compare(
        index,
        np.ones(len(rows), dtype=bool),
        _earlier(tmp_path),
        np.zeros(len(rows), dtype=np.int64),
        ["one"],
    )

    assert difference == RowChanges(previous="abc", added=0, removed=0, changed=0)


def _earlier(folder: Path, sources: Origins = ()) -> EarlierVersion:
    files = {split: folder / name for split, name in SPLIT_FILES.items()}
    return EarlierVersion(digest="abc", files=files, sources=sources)


def _index_of(rows: int) -> RowIndex:
    index = RowIndex()
    for number in range(rows):
        index.add(Row.pair(f"a{number}", f"b{number}"), "train", 0, number + 1)
    return index


def _warnings(rows: list[tuple[str, str]], splits: Sequence[SplitName], recipe: Recipe) -> list[str]:
    index, selection = _index(rows, splits, recipe.cleaning)
    kept = np.bincount(index.table["split"][selection.keep], minlength=3).tolist()
    issues = summary_issues(index, selection, dict(zip(SPLITS, kept, strict=True)), recipe)
    assert {issue.severity for issue in issues} <= {"warning"}
    return [str(issue) for issue in issues]


def _index(
    pairs: list[tuple[str, str]],
    splits: Sequence[SplitName] | None = None,
    cleaning: Cleaning = NO_SPLITS.cleaning,
) -> tuple[RowIndex, Selection]:
    index, rows = RowIndex(), [Row.pair(*pair) for pair in pairs]
    for number, row in enumerate(rows):
        index.add(row, splits[number] if splits else "train", 0, number + 1)
    return index, select(index, reader(rows), cleaning, [RowPosition()])
