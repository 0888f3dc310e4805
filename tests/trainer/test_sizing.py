# SPDX-License-Identifier: Apache-2.0
"""The table of sizes."""

import pytest
from transformers import LlamaConfig

from finetune_trainer.contract.method import Method
from tools.bench.page import END
from tools.sizing import table
from tools.sizing.__main__ import BEGIN_ACCURACY, BEGIN_SIZES, PAGE
from tools.sizing.table import ModelRow, Size

GIBIBYTE = 1 << 30


def test_the_page_has_the_markers_of_both_tables() -> None:
    text = PAGE.read_text()
    assert all(END in text.partition(begin)[2] for begin in (BEGIN_SIZES, BEGIN_ACCURACY))


@pytest.mark.parametrize("method", [Method(), Method(type="Full"), Method(objective="DPO", type="QLoRA")])
def test_a_model_has_a_size_for_each_length(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LENGTHS", (64, 128))
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
    )

    row = table.model_row("tiny", config, method)

    assert [size.devices for size in row.sizes] == [1, 1]
    assert row.sizes[0].alone_bytes < row.sizes[1].alone_bytes
    assert row.tokens_per_second == pytest.approx(989e12 * 0.35 / row.flops_per_token)


def test_a_cell_names_the_devices_that_share_what_one_cannot_hold() -> None:
    sizes = (
        Size(17 * GIBIBYTE, 1, 17 * GIBIBYTE),
        Size(138 * GIBIBYTE, 2, 37 * GIBIBYTE),
        Size(139 * GIBIBYTE, None, 139 * GIBIBYTE),
    )
    rows = table.sheet([ModelRow("8B", Method(type="Full"), sizes, 66e9)]).rows
    assert rows == (("8B Full", "17", "138, or 2 × 37", "139, does not fit", "66.0", "5,245"),)
