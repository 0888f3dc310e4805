# SPDX-License-Identifier: Apache-2.0
"""Chooses the training rows that a prompt shows as examples.

The rule:

1. A row is a candidate if its answer is a correct one, its input is not that of an evaluated row, and it has
   the same tools as all evaluated rows.
2. The order of the candidates is drawn with the seed.
3. If the answers look like labels, the labels take turns, in an order drawn with the seed, so that the prompt
   shows as many of them as possible.
4. A candidate with which the prompt no longer fits is skipped.
"""

import heapq
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Final

from finetune_trainer import canonical_json
from finetune_trainer.data.row_index import input_digest
from finetune_trainer.rows import Row
from finetune_trainer.scoring.scopesource import MAX_LABELS, MIN_ROWS_PER_LABEL

MAX_CANDIDATES: Final = 256
"""Max rows that are tried, and max rows per label that are kept."""


@dataclass(frozen=True, order=True)
class ShownRow:
    """A training row that the prompt shows."""

    number: int
    """Number of the row in the train split, from 1."""
    row: Row


def choose_rows(
    training: Iterable[Row],
    evaluated: Sequence[Row],
    count: int,
    seed: int,
    fits: Callable[[Sequence[ShownRow]], bool],
) -> list[ShownRow]:
    """Choose up to `count` rows by the rule of this module; the same arguments give the same rows.

    Args:
        training: rows of the train split, in order.
        evaluated: rows whose input must not be shown.
        count: number of rows to choose.
        seed: seed of the order.
        fits: whether a prompt with these rows fits.
    """
    chosen: list[ShownRow] = []
    if count == 0:
        return chosen
    for candidate in _candidates(training, evaluated, seed):
        if fits([*chosen, candidate]):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def _candidates(training: Iterable[Row], evaluated: Sequence[Row], seed: int) -> Iterator[ShownRow]:
    """Candidates in the order in which they are tried."""
    draw = random.Random(seed)  # noqa: S311 - a documented choice, not a secret
    inputs = {input_digest(row) for row in evaluated}
    tools = set(map(_tools, evaluated))
    drawn: list[tuple[float, int, Row]] = []
    by_answer: dict[str, list[tuple[float, int, Row]]] = {}
    rows = 0
    for number, row in enumerate(training, 1):
        key = draw.random()
        if row.label is False or {_tools(row)} != tools or input_digest(row) in inputs:
            continue
        rows += 1
        entry = (-key, -number, row)
        _keep(drawn, entry)
        # One answer more than labels may have shows that there are no labels.
        if row.output in by_answer or len(by_answer) <= MAX_LABELS:
            _keep(by_answer.setdefault(row.output, []), entry)
    has_labels = len(by_answer) <= MAX_LABELS and 1 < len(by_answer) * MIN_ROWS_PER_LABEL <= rows
    if not has_labels:
        return map(_shown, sorted(drawn, reverse=True))
    labels = sorted(by_answer)
    draw.shuffle(labels)
    turns = zip_longest(*(sorted(by_answer[label], reverse=True) for label in labels))
    return (_shown(entry) for entry in chain.from_iterable(turns) if entry is not None)


def _tools(row: Row) -> str | None:
    return None if row.tools is None else canonical_json.of_json(row.tools)


def _keep(heap: list[tuple[float, int, Row]], entry: tuple[float, int, Row]) -> None:
    if len(heap) < MAX_CANDIDATES:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _shown(entry: tuple[float, int, Row]) -> ShownRow:
    return ShownRow(-entry[1], entry[2])
