# SPDX-License-Identifier: Apache-2.0
"""Rows that preflight tokenized are read from disk exactly as they were encoded."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.method import OBJECTIVES, Objective
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.preflight import tokenization
from finetune_trainer.preflight.tokenization import RowFiles, TokenizedRows, tokenize
from finetune_trainer.rows import SPLIT_FILES, Message, Row, count_rows
from finetune_trainer.stage.context import StageMeter
from finetune_trainer.tokens.encoding import EncodedAnswers, EncodedRow, Encoder, make_encoder
from finetune_trainer.tokens.rendering import RowNotEncodable
from finetune_trainer.tokens.token_files import encoding_name
from tests.trainer.workbench import JUDGED, PAIRS, ROWS, Workbench, tiny_tokenizer

CHAT = Row(
    (
        Message("system", "Be brief."),
        Message("user", "order late?"),
        Message("assistant", "shipping"),
        Message("user", "no, paid twice"),
        Message("assistant", "billing"),
    )
)
CONTEXT_ONLY = Row((*CHAT.messages[:2], Message("assistant", "shipping", learned=False), *CHAT.messages[3:]))


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def tokenized(bench: Workbench, rows: Sequence[Row], encoder: Encoder) -> TokenizedRows:
    """The tokens of training rows, of a validation split with the first row, and of an empty test split."""
    dataset = ArtifactRef(kind="datasets", digest=bench.dataset(rows, rows[:1]))
    folder = bench.store.artifact(dataset)
    paths = {split: folder / name for split, name in SPLIT_FILES.items()}
    files = RowFiles(dataset, paths, {split: count_rows(path) for split, path in paths.items()})
    return tokenize(files, encoder, bench.store, meter(bench, files))


def meter(bench: Workbench, files: RowFiles) -> StageMeter:
    return StageMeter(bench.context(), files.cost)


def content(row: Any) -> Any:
    """The tokens of a row, without the number of its turns."""
    return (row.input_ids, row.labels) if isinstance(row, EncodedRow) else row


@pytest.mark.parametrize(
    ("objective", "rows"),
    [("SFT", (*ROWS, CHAT, CONTEXT_ONLY)), ("DPO", PAIRS), ("KTO", JUDGED)],
    ids=["turns", "pairs", "labelled"],
)
@pytest.mark.parametrize("max_length", [5, 1000])
def test_rows_on_disk_are_the_encoded_rows(
    bench: Workbench, objective: Objective, rows: Sequence[Row], max_length: int
) -> None:
    encoder = make_encoder(objective, tiny_tokenizer())
    expected = [encoder.encode(row) for row in rows]

    found = tokenized(bench, rows, encoder).files.rows("train", max_length)

    assert [content(row) for row in found] == [content(row.truncate(max_length)) for row in expected]
    assert found.lengths.tolist() == [row.truncate(max_length).num_tokens for row in expected]
    assert found.prompt_lengths.tolist() == [row.prompt_length for row in expected]
    assert content(found[-1]) == content(expected[-1].truncate(max_length))
    assert isinstance(found[0], EncodedAnswers) == OBJECTIVES[objective].rows.is_preference_data


def test_splits_without_rows_and_numbers_of_rows_are_read_back(bench: Workbench) -> None:
    files = tokenized(bench, ROWS, make_encoder("SFT", tiny_tokenizer())).files

    assert [len(files.rows(split)) for split in SPLIT_FILES] == [len(ROWS), 1, 0]
    assert [files.facts[split].rows for split in SPLIT_FILES] == [len(ROWS), 1, 0]
    with pytest.raises(IndexError):
        files.rows("train")[len(ROWS)]


def test_a_batch_is_encoded_like_its_rows_one_by_one(bench: Workbench) -> None:
    broken = replace(CHAT, tools='[{"function":{"name":"lookup"},"type":"function"}]')
    encoder = make_encoder("SFT", tiny_tokenizer())

    first, rejected, last = encoder.encode_batch([ROWS[0], broken, CHAT])

    assert (first, last) == (encoder.encode(ROWS[0]), encoder.encode(CHAT))
    assert isinstance(rejected, RowNotEncodable)
    assert "lookup" in str(rejected)


def test_the_same_rows_are_not_tokenized_again(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder("SFT", tiny_tokenizer())
    first = tokenized(bench, ROWS, encoder)
    monkeypatch.setattr(type(encoder), "encode_batch", lambda *_: pytest.fail("tokenized again"))

    assert tokenized(bench, ROWS, encoder).digest == first.digest


def test_an_encoding_with_other_arguments_or_of_another_kind_has_another_name() -> None:
    names = {
        encoding_name(encoder)
        for encoder in (
            make_encoder("SFT", tiny_tokenizer()),
            make_encoder("SFT", tiny_tokenizer(), {"enable_thinking": False}),
            make_encoder("DPO", tiny_tokenizer()),
        )
    }

    assert len(names) == 3
    assert encoding_name(make_encoder("KTO", tiny_tokenizer())) in names


@pytest.mark.parametrize("count", [2_000, pytest.param(50_000, marks=pytest.mark.full)])
def test_tokenizing_and_reading_hold_few_rows_in_memory(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A row as an object takes about 800 bytes, and its tokens as lists 2 KiB."""
    monkeypatch.setattr(tokenization, "MAX_BATCH_ROWS", 32)
    encoder, path = make_encoder("SFT", tiny_tokenizer()), bench.root / "train.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"completion":"sales","prompt":"order {at} late?"}}\n' for at in range(count))
    files = RowFiles(
        ArtifactRef(kind="datasets", digest=bench.dataset()), {"train": path}, {"train": count_rows(path)}
    )
    encoder.encode_batch([ROWS[0]])  # so that caches are not counted
    tracemalloc.start()

    rows = tokenize(files, encoder, bench.store, meter(bench, files)).files.rows("train")
    total = sum(row.num_tokens for row in rows)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(rows), total) == (count, rows.lengths.sum())
    assert peak < (2 << 20) + 50 * count
