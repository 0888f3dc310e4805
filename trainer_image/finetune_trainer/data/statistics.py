# SPDX-License-Identifier: Apache-2.0
"""Statistics of the kept rows."""

from typing import TYPE_CHECKING, Final

from finetune_trainer.data.duplicates import Selection
from finetune_trainer.data.result import Bucket, CharacterLengths, Label, Statistics
from finetune_trainer.data.row_index import MAX_LABELS, SPLITS, RowIndex

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_BUCKETS: Final = 20
BUCKET_EDGES: Final = (
    (10, 12, 15, 20, 25, 30, 40, 50, 60, 80),
    (10, 20, 40, 60),
    (10, 20, 50),
    (10, 30),
    (10,),
)
"""Round numbers within a decade, in tenths, from fine to coarse."""


def compute_statistics(index: RowIndex, selection: Selection, redacted_rows: int) -> Statistics:
    """The statistics of the kept rows."""
    import numpy as np

    # Column by column: indexing whole rows would copy the whole index.
    table, keep = index.table, selection.keep
    completions = table["completion"][keep]
    # Without return_counts numpy uses a hash table, which takes several times as long as sorting.
    distinct = len(np.unique(completions, return_counts=True)[0])
    return Statistics(
        duplicate_rows=selection.duplicates,
        near_duplicate_rows=selection.near_duplicates,
        near_search=selection.near_search,
        leaked_rows=selection.leaked + selection.near_leaked,
        conflicting_rows=selection.conflicting,
        redacted_rows=redacted_rows,
        prompt_characters=lengths(table["prompt_characters"][keep]),
        completion_characters=lengths(table["completion_characters"][keep]),
        distinct_completions=distinct,
        labels=_labels(index, completions, table["split"][keep]) if distinct <= MAX_LABELS else (),
    )


def lengths(characters: "NDArray[np.uint32]") -> CharacterLengths:
    """The distribution of lengths, given one number per row."""
    import numpy as np

    if not len(characters):
        return CharacterLengths()
    edges = _edges(int(characters.min()), int(characters.max()))
    counts, _ = np.histogram(characters, bins=edges)
    return CharacterLengths(
        mean=round(float(characters.mean()), 1),
        median=float(np.median(characters)),
        p95=round(float(np.percentile(characters, 95)), 1),
        max=int(characters.max()),
        histogram=tuple(
            Bucket(start, end, int(rows))
            for start, end, rows in zip(edges[:-1], edges[1:], counts, strict=True)
        ),
    )


def _labels(
    index: RowIndex, completions: "NDArray[np.uint64]", splits: "NDArray[np.uint8]"
) -> tuple[Label, ...]:
    """The labels with their rows per split; empty if the text of a completion was not kept."""
    import numpy as np

    labels = []
    for completion in np.unique(completions):
        text = index.label(int(completion))
        if text is None:
            return ()
        counts = np.bincount(splits[completions == completion], minlength=len(SPLITS)).tolist()
        labels.append(Label(text, dict(zip(SPLITS, counts, strict=True))))
    return tuple(sorted(labels, key=lambda label: (-sum(label.rows.values()), label.completion)))


def _edges(smallest: int, largest: int) -> list[int]:
    """Round numbers from 0 to above `largest`, as fine as MAX_BUCKETS allows; the first bucket ends near
    `smallest`.
    """
    for steps in BUCKET_EDGES:
        numbers = [
            step * 10**decade // 10
            for decade in range(len(str(largest)) + 1)
            for step in steps
            if decade or step % 10 == 0
        ]
        first = max((number for number in numbers if number <= smallest), default=0)
        last = min(number for number in numbers if number > largest)
        edges = [0, *(number for number in numbers if max(first, 1) <= number <= last)]
        if len(edges) <= MAX_BUCKETS + 1:
            return edges
    return edges
