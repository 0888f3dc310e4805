# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/scores.md about intervals."""

from tools.bench.page import END
from tools.evaluation import intervals
from tools.evaluation.__main__ import BEGIN_COVERAGE, BEGIN_ROWS, PAGE


def test_the_page_has_the_tables_that_the_code_computes() -> None:
    text = PAGE.read_text()

    assert all(sheet.to_markdown() in text for sheet in intervals.row_sheets())
    assert all(
        "| ---" in text.partition(begin)[2].partition(END)[0] for begin in (BEGIN_ROWS, BEGIN_COVERAGE)
    )
