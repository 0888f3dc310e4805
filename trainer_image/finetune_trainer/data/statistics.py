"""Facts about the rows, and what is worth a warning about all of them together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.vocabulary import RULE_VERSION, DataFormat, RowForm, SplitName
from finetune_trainer.data.duplicates import Selection
from finetune_trainer.data.index import MAX_LABELS, SPLITS, RowIndex
from finetune_trainer.data.options import OLDEST_RULE, Recipe
from finetune_trainer.data.result import Bucket, CharacterLengths, Label, Statistics
from finetune_trainer.data.rowproblems import Code, Issue, quoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_RECOMMENDED_ROWS: Final = 200
MIN_NEAR_CONSTANT_SHARE: Final = 0.95
MIN_NEAR_CONSTANT_ROWS: Final = 20
"""With fewer rows a share says little."""

CONTRADICTIONS: Final[Mapping[RowForm | None, str]] = {
    "KTO": "and the same answer with the other label",
    "Preference": "and prefer the answer that it rejects",
}
"""What a row says against an earlier one; of other forms, another answer."""

MAX_BUCKETS: Final = 20
MIN_ROWS_PER_LABEL: Final = 4
"""On average, and more; otherwise completions are texts of their own."""
MAX_LABELS_IN_MESSAGE: Final = 10

BUCKET_EDGES: Final = (
    (10, 12, 15, 20, 25, 30, 40, 50, 60, 80),
    (10, 20, 40, 60),
    (10, 20, 50),
    (10, 30),
    (10,),
)
"""Round numbers of one decade, in tenths, from fine to coarse."""


def of_rows(index: RowIndex, selection: Selection, redacted_rows: int) -> Statistics:
    """The facts about the rows that are kept."""
    import numpy as np

    # Column by column: all of them at once would be a copy of the whole index.
    table, keep = index.table, selection.keep
    completions = table["completion"][keep]
    # Without counts numpy puts all of them into a hash table, which takes several times as long as sorting.
    distinct = len(np.unique(completions, return_counts=True)[0])
    return Statistics(
        duplicate_rows=selection.duplicates,
        near_duplicate_rows=selection.near_duplicates,
        leaked_rows=selection.leaked + selection.near_leaked,
        conflicting_rows=selection.conflicting,
        redacted_rows=redacted_rows,
        prompt_characters=lengths(table["prompt_characters"][keep]),
        completion_characters=lengths(table["completion_characters"][keep]),
        distinct_completions=distinct,
        labels=_labels(index, completions, table["split"][keep]) if distinct <= MAX_LABELS else (),
    )


def lengths(characters: "NDArray[np.uint32]") -> CharacterLengths:
    """Of one number a row."""
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


def summary_issues(
    index: RowIndex, selection: Selection, split_rows: Mapping[SplitName, int], recipe: Recipe
) -> tuple[Issue, ...]:
    """Warnings about all rows together; `split_rows` are those that are kept."""
    found = [
        _few_rows(sum(split_rows.values())),
        *(
            _empty_split(name, rows, recipe.division)
            for name, rows in split_rows.items()
            if selection.keep.any()
        ),
        *_alike(selection, recipe),
        near_constant_completions(index, selection),
        _one_label(index, selection),
    ]
    return tuple(issue for issue in found if issue is not None)


def unread_labels(rows: int) -> Iterator[Issue]:
    """A warning where an older rule learns answers that their labels may call bad."""
    if rows:
        yield _warning(
            Code.LABELS_NOT_READ,
            f"{_rows(rows)} {'has' if rows == 1 else 'have'} a label that may call the answer good or bad,"
            f" and rule version {OLDEST_RULE} of this Dataset learns every answer",
            "labels that are read",
            f"set split.ruleVersion: {RULE_VERSION} to read them as KTO does, or format to keep this",
        )


def ignored_names(names: Sequence[str], form: DataFormat | None) -> Iterator[Issue]:
    """A warning of columns that are named in vain."""
    said = ", ".join(name if name == "template" else f"columns.{name}" for name in names)
    if said:
        yield _warning(
            Code.COLUMNS_IGNORED,
            f"{said} {'is' if len(names) == 1 else 'are'} not used, because the rows are {form}",
            "names that the format reads",
            "remove what is not used, or set format to what the rows are",
        )


def near_constant_completions(index: RowIndex, selection: Selection) -> Issue | None:
    """A warning where nearly every row has the same completion."""
    import numpy as np

    completions, counts = np.unique(index.table["completion"][selection.keep], return_counts=True)
    rows, most = int(counts.sum()), int(counts.max(initial=0))
    if rows < MIN_NEAR_CONSTANT_ROWS or most < MIN_NEAR_CONSTANT_SHARE * rows:
        return None
    text = index.label(int(completions[counts.argmax()]))
    shown = "" if text is None else quoted(f" {text[:60]!r}", "")
    return _warning(
        Code.NEAR_CONSTANT_COMPLETIONS,
        f"{most} of {rows} rows have the same completion{shown}",
        "completions that depend on the prompt",
        "add rows with other completions, or leave some of these out; a model learns to say this always",
    )


def not_held_out(
    labels: Sequence[Label], split_rows: Mapping[SplitName, int], split: SplitName
) -> list[Label]:
    """Labels that have rows to train on, and none in this split, which has some.

    Where most completions are given once, they are no labels.
    """
    if len(labels) * MIN_ROWS_PER_LABEL > sum(split_rows.values()) or not split_rows[split]:
        return []
    return [label for label in labels if label.rows["train"] and not label.rows[split]]


def labels_not_held_out(labels: Sequence[Label], split_rows: Mapping[SplitName, int]) -> Iterator[Issue]:
    """Warnings of labels that have rows to train on, and none to measure with."""
    splits: tuple[SplitName, ...] = ("validation", "test")
    for split in splits:
        absent = not_held_out(labels, split_rows, split)
        if not absent:
            continue
        named = ", ".join(
            f"{label.completion!r} ({label.rows['train']} for training)"
            for label in absent[:MAX_LABELS_IN_MESSAGE]
        )
        more = (
            f" and {len(absent) - MAX_LABELS_IN_MESSAGE} more" if len(absent) > MAX_LABELS_IN_MESSAGE else ""
        )
        yield _warning(
            Code.LABEL_NOT_HELD_OUT,
            f"{len(absent)} of {len(labels)} answers {'has' if len(absent) == 1 else 'have'} no row in the"
            f" {split} split{quoted(f': {named}{more}', ', which the report names')}",
            "some rows of each answer",
            f"add rows, raise split.{split}, or take another split.seed; scores say nothing of these answers",
        )


def _one_label(index: RowIndex, selection: Selection) -> Issue | None:
    """A warning where all rows of KTO have the same label."""
    import numpy as np

    labels = np.unique(index.table["label"][selection.keep])
    if index.form != "KTO" or len(labels) != 1:
        return None
    label = "false" if labels[0] == 1 else "true"
    return _warning(
        Code.ONE_LABEL,
        f"every row has the label {label}",
        "good and bad answers",
        "add rows with the other label; KTO learns from both",
    )


def _few_rows(rows: int) -> Issue | None:
    if rows >= MIN_RECOMMENDED_ROWS or not rows:
        return None
    return _warning(
        Code.FEW_ROWS,
        f"there {'is' if rows == 1 else 'are'} {_rows(rows)} only",
        f"at least {MIN_RECOMMENDED_ROWS} good rows",
        "start with 200–500, measure, then scale: with fewer, a measurement says little",
    )


def _empty_split(name: SplitName, rows: int, division: Split) -> Issue | None:
    fraction = {"validation": division.validation, "test": division.test}.get(name)
    if rows or fraction is None or not (fraction or division.is_given):
        return None
    return _warning(
        Code.EMPTY_SPLIT,
        f"no row is in the {name} split",
        "some rows to measure with",
        f"add rows that say {name}" if division.is_given else f"add rows, or set split.{name}: 0",
    )


def _alike(selection: Selection, recipe: Recipe) -> Iterator[Issue]:
    if rows := selection.conflicting:
        yield _warning(
            Code.CONFLICTING_DUPLICATES,
            f"{_rows(rows)} {'has' if rows == 1 else 'have'} the same input as an earlier row, "
            + CONTRADICTIONS.get(selection.index.form, "and another answer"),
            "one answer to an input",
            "keep the right one",
        )
    if rows := selection.leaked + selection.near_leaked:
        nearly = f", {selection.near_leaked} of them nearly" if selection.near_leaked else ""
        yield _warning(
            Code.LEAKED_ROWS,
            f"{_rows(rows)} had the input of a row in a held-out split{nearly}, and {_were(rows)} left out",
            "each input in one split",
            "look where they come from, if they are many",
        )
    # Rows that are left out as asked are no warning; nor are exact duplicates, which always are.
    if (rows := selection.near_duplicates or 0) and recipe.cleaning.near_duplicates == "Keep":
        yield _warning(
            Code.NEAR_DUPLICATES,
            f"{_rows(rows)} had nearly the same input, and the same answer, as an earlier row, and stay",
            "rows that differ",
            "set cleaning.nearDuplicates: Remove to leave them out",
        )
    if selection.skipped:
        yield _warning(
            Code.NEAR_DUPLICATES_SKIPPED,
            f"near duplicates were not looked for in {selection.skipped} rows",
            f"at most {recipe.cleaning.max_rows_for_near_duplicates} rows",
            "raise cleaning.maxRowsForNearDuplicates, which takes up to 5 KiB of memory a row, "
            "or set cleaning.nearDuplicates: Off",
        )


def _labels(
    index: RowIndex, completions: "NDArray[np.uint64]", splits: "NDArray[np.uint8]"
) -> tuple[Label, ...]:
    """Empty where the text of a completion is not known any more."""
    import numpy as np

    labels = []
    for completion in np.unique(completions):
        text = index.label(int(completion))
        if text is None:
            return ()
        counts = np.bincount(splits[completions == completion], minlength=len(SPLITS)).tolist()
        labels.append(Label(text, dict(zip(SPLITS, counts, strict=True))))
    return tuple(sorted(labels, key=lambda label: (-sum(label.rows.values()), label.completion)))


def _edges(least: int, most: int) -> list[int]:
    """Round numbers from 0 to above `most`, as fine as MAX_BUCKETS allows; one bucket up to about `least`."""
    for steps in BUCKET_EDGES:
        numbers = [
            step * 10**decade // 10
            for decade in range(len(str(most)) + 1)
            for step in steps
            if decade or step % 10 == 0
        ]
        first = max((number for number in numbers if number <= least), default=0)
        last = min(number for number in numbers if number > most)
        edges = [0, *(number for number in numbers if max(first, 1) <= number <= last)]
        if len(edges) <= MAX_BUCKETS + 1:
            return edges
    return edges


def _warning(code: Code, what: str, expected: str, fix: str) -> Issue:
    return Issue(code, what, expected, fix, severity="warning")


def _rows(rows: int) -> str:
    return f"{rows} row{'' if rows == 1 else 's'}"


def _were(rows: int) -> str:
    return "was" if rows == 1 else "were"
