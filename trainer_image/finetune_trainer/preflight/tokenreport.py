# SPDX-License-Identifier: Apache-2.0
"""Report about the rows' lengths in tokens, in the run's folder, as JSON and as a page."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.statistics import lengths as describe_lengths
from finetune_trainer.preflight.lengths import TokenLengths
from finetune_trainer.preflight.longrows import LongRows
from finetune_trainer.report.document import encode
from finetune_trainer.report.html_page import token_page
from finetune_trainer.store import RunFolder

REPORT_NAME: Final = "tokens.json"
PAGE_NAME: Final = "tokens.html"
VERSION: Final = 1
MAX_LONGEST_ROWS: Final = 10
"""Max rows that the report names."""


def token_report(model: str, long_rows: LongRows) -> dict[str, Any]:
    """The report of measured rows, in JSON types. Rows are counted from 1."""
    splits, max_length = long_rows.lengths, long_rows.max_length
    whole = np.concatenate([lengths.whole for lengths in splits.values()])
    distribution = dataclasses.asdict(describe_lengths(whole.astype(np.uint32)))
    return {
        "version": VERSION,
        "baseModel": model,
        "maxSequenceLength": max_length,
        "rows": len(whole),
        "cutRows": long_rows.truncated,
        "droppedRows": long_rows.dropped,
        "lostAnswers": sum(
            splits[split].without_answer(max_length).rows for split in long_rows.truncated_splits
        ),
        "learnedTurns": sum(lengths.facts.learned_turns for lengths in splits.values()),
        "unlearnedTurns": sum(lengths.facts.unlearned_turns for lengths in splits.values()),
        "lengths": distribution,
        "longest": [
            {"split": split, "row": row + 1, "tokens": tokens} for tokens, split, row in _longest(splits)
        ],
    }


def _longest(splits: Mapping[SplitName, TokenLengths]) -> list[tuple[int, SplitName, int]]:
    """Tokens, split and index of the longest rows; of equal ones the first."""
    candidates = [
        (int(lengths.whole[row]), split, int(row))
        for split, lengths in splits.items()
        for row in np.argsort(-lengths.whole, kind="stable")[:MAX_LONGEST_ROWS]
    ]
    return sorted(candidates, key=lambda row: -row[0])[:MAX_LONGEST_ROWS]


def write_token_report(folder: RunFolder, report: dict[str, Any]) -> str:
    """Write the report and return the page's URI. Raises StageFailure (STORE_UNAVAILABLE)."""
    folder.write(REPORT_NAME, encode(report))
    folder.write(PAGE_NAME, token_page(report).encode())
    return f"{folder.uri}/{PAGE_NAME}"
