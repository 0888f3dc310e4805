# SPDX-License-Identifier: Apache-2.0
"""Warnings about all rows together."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.vocabulary import COMPLETION_FORMS, DataFormat, RowForm, SplitName
from finetune_trainer.data.duplicates import Selection
from finetune_trainer.data.formats.field_meanings import meaning_of
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.result import Label
from finetune_trainer.data.row_index import MAX_LABEL_CHARACTERS, RowIndex, fold_text
from finetune_trainer.data.row_problems import Code, Issue, field_name, mark_quoted, show_hidden_characters

MIN_RECOMMENDED_ROWS: Final = 200
MIN_NEAR_CONSTANT_SHARE: Final = 0.95
MIN_NEAR_CONSTANT_ROWS: Final = 20
"""With fewer rows a share means little."""

CONTRADICTIONS: Final[Mapping[RowForm | None, str]] = {
    "KTO": "and the same answer with the other label",
    "Preference": "and prefer the answer that it rejects",
}
"""How a row contradicts an earlier one; rows of other forms have another answer."""

MIN_ROWS_PER_LABEL: Final = 4
"""Minimum average number of rows per distinct completion for completions to count as labels."""
MAX_LABELS_IN_MESSAGE: Final = 10


def summary_issues(
    index: RowIndex,
    selection: Selection,
    split_rows: Mapping[SplitName, int],
    recipe: Recipe,
    *,
    only_trains: bool = False,
) -> tuple[Issue, ...]:
    """Warnings about all rows together; `split_rows` counts the kept rows per split.

    `only_trains`: no source has rows to hold out.
    """
    found = [
        _few_rows(sum(split_rows.values())),
        *(
            _empty_split(name, rows, recipe.division, only_trains=only_trains)
            for name, rows in split_rows.items()
            if selection.keep.any()
        ),
        *_alike(selection, recipe),
        near_constant_completions(index, selection),
        _one_label(index, selection),
    ]
    return tuple(issue for issue in found if issue is not None)


def ignored_names(
    names: Sequence[str], form: DataFormat | None, source: str | None = None
) -> Iterator[Issue]:
    """A warning about column names in the recipe that the format of the source does not use."""
    unused = ", ".join(name if name == "template" else f"columns.{name}" for name in names)
    of = "" if source is None else f" of {source}"
    if unused:
        yield _warning(
            Code.COLUMNS_IGNORED,
            f"{unused} {'is' if len(names) == 1 else 'are'} not used, because the rows{of} are {form}",
            "names that the format reads",
            "remove the unused names, or set format to the format of the rows",
        )


def unread_fields(unused: Iterable[str]) -> tuple[str, ...]:
    """Those of the unused fields that have a meaning for training by their names."""
    return tuple(name for name in unused if meaning_of(name) is not None)


def ignored_fields(names: Iterable[str]) -> Iterator[Issue]:
    """A warning per unused field that has a meaning for training by its name."""
    for name in names:
        if meaning := meaning_of(name):
            kept = "" if "[]" in name else ", or name it in keepColumns if it only describes the row"
            # The name is one of a few words, so it is not marked as a quotation.
            yield _warning(
                Code.FIELDS_IGNORED,
                f'"{name}" is not read; by its name it {meaning.what}',
                "",
                meaning.fix + kept,
            )


def differing_forms(found: Sequence[tuple[str, DataFormat, RowForm]]) -> Iterator[Issue]:
    """An error for the first source whose rows are not trained on together with those of the first one.

    `found` has the name, the format and the form of the rows of each source that has rows.
    """
    for name, form, kind in found[1:]:
        first_name, first_form, first_kind = found[0]
        if kind != first_kind and not {kind, first_kind} <= set(COMPLETION_FORMS):
            yield Issue(
                Code.FORMS_DIFFER,
                f"{name} has {kind} rows (format {form}), but {first_name} has {first_kind} rows (format"
                f" {first_form})",
                "sources with rows of one form: prompts and completions or chats, or preferences, or answers"
                " with labels",
                "make a Dataset of each form, or correct format and columns of the source that is wrong",
            )
            return


def kept_nothing(names: Iterable[str]) -> Iterator[Issue]:
    """A warning per column that keepColumns names and that no row has."""
    for name in names:
        yield _warning(
            Code.COLUMNS_IGNORED,
            f"keepColumns names {field_name(name)}, but no row has a value in it",
            "a column with values",
            "correct the name, or remove it from keepColumns",
        )


def combined_labels(rows: int) -> Iterator[Issue]:
    """A warning if answers combine several labels."""
    if rows:
        yield _warning(
            Code.COMBINED_LABELS,
            f'{_rows(rows)} {"has" if rows == 1 else "have"} several choices, joined by ", " as one answer,'
            " so each combination is learned and scored as an answer of its own",
            "one choice per row, if the answers are classes",
            'keep one choice, and set choice="single" in the labeling configuration, if one was meant',
        )


def similar_labels(labels: Sequence[Label]) -> Iterator[Issue]:
    """A warning about labels that differ only by case, spaces or invisible characters."""
    alike: dict[str, list[Label]] = {}
    # Truncated labels and those with a hidden secret may differ in what is not shown.
    texts = Counter(label.completion for label in labels)
    for label in labels:
        if texts[label.completion] == 1 and len(label.completion) < MAX_LABEL_CHARACTERS:
            alike.setdefault(fold_text(label.completion), []).append(label)
    groups = [group for group in alike.values() if len(group) > 1]
    if not groups:
        return
    named = "; ".join(
        " and ".join(
            f"{show_hidden_characters(label.completion)} ({_rows(sum(label.rows.values()))})"
            for label in group
        )
        for group in groups[:MAX_LABELS_IN_MESSAGE]
    )
    more = f"; and {len(groups) - MAX_LABELS_IN_MESSAGE} more" if len(groups) > MAX_LABELS_IN_MESSAGE else ""
    count = sum(map(len, groups))
    yield _warning(
        Code.SIMILAR_LABELS,
        f"{count} answers look the same: they differ only by case, spaces or hidden characters"
        f"{mark_quoted(f': {named}{more}', ', which the report names')}",
        "one spelling per answer",
        "write equal answers in one way; set cleaning.normalizeWhitespace: true if only spaces differ;"
        " a model learns each spelling as an answer of its own",
    )


def near_constant_completions(index: RowIndex, selection: Selection) -> Issue | None:
    """A warning if nearly every row has the same completion."""
    import numpy as np

    completions, counts = np.unique(index.table["completion"][selection.keep], return_counts=True)
    rows, most = int(counts.sum()), int(counts.max(initial=0))
    if rows < MIN_NEAR_CONSTANT_ROWS or most < MIN_NEAR_CONSTANT_SHARE * rows:
        return None
    text = index.label(int(completions[counts.argmax()]))
    shown = "" if text is None else mark_quoted(f" {text[:60]!r}", "")
    return _warning(
        Code.NEAR_CONSTANT_COMPLETIONS,
        f"{most} of {rows} rows have the same completion{shown}",
        "completions that depend on the prompt",
        "add rows with other completions, or remove some of these; a model learns to always give this answer",
    )


def not_held_out(
    labels: Sequence[Label], split_rows: Mapping[SplitName, int], split: SplitName
) -> list[Label]:
    """Labels with training rows but no row in this split; none if the split is empty.

    Completions that mostly occur once are not labels.
    """
    if len(labels) * MIN_ROWS_PER_LABEL > sum(split_rows.values()) or not split_rows[split]:
        return []
    return [label for label in labels if label.rows["train"] and not label.rows[split]]


def labels_not_held_out(labels: Sequence[Label], split_rows: Mapping[SplitName, int]) -> Iterator[Issue]:
    """Warnings about labels with training rows but no row to evaluate with."""
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
            f" {split} split{mark_quoted(f': {named}{more}', ', which the report names')}",
            "some rows per answer",
            f"add rows, raise split.{split}, or choose another split.seed; scores do not cover these answers",
        )


def _one_label(index: RowIndex, selection: Selection) -> Issue | None:
    """A warning if all rows of KTO have the same label."""
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
        f"there {'is' if rows == 1 else 'are'} only {_rows(rows)}",
        f"at least {MIN_RECOMMENDED_ROWS} good rows",
        "start with 200–500 rows, measure, then scale: with fewer rows, scores mean little",
    )


def _empty_split(name: SplitName, rows: int, division: Split, *, only_trains: bool) -> Issue | None:
    fraction = {"validation": division.validation, "test": division.test}.get(name)
    if rows or fraction is None or not (fraction or division.is_given):
        return None
    if only_trains:
        return _warning(
            Code.EMPTY_SPLIT,
            f"no row is in the {name} split, because every source has splits: TrainOnly",
            "some rows to evaluate with",
            f"set splits: All in a source with rows to hold out, or set split.{name}: 0",
        )
    return _warning(
        Code.EMPTY_SPLIT,
        f"no row is in the {name} split",
        "some rows to evaluate with",
        f"add rows with the split {name}" if division.is_given else f"add rows, or set split.{name}: 0",
    )


def _alike(selection: Selection, recipe: Recipe) -> Iterator[Issue]:
    if rows := selection.conflicting:
        yield _warning(
            Code.CONFLICTING_DUPLICATES,
            f"{_rows(rows)} {'has' if rows == 1 else 'have'} the same input as an earlier row, "
            + CONTRADICTIONS.get(selection.index.form, "and another answer"),
            "one answer per input",
            "keep the correct row",
        )
    if rows := selection.leaked + selection.near_leaked:
        nearly = f" ({selection.near_leaked} of them nearly)" if selection.near_leaked else ""
        yield _warning(
            Code.LEAKED_ROWS,
            f"{_rows(rows)} had the input of a held-out row{nearly} and {_were(rows)} removed",
            "each input in one split",
            "find out where they come from, if there are many",
        )
    # No warning about rows that are removed on request, nor about exact duplicates, which are always removed.
    if (rows := selection.near_duplicates or 0) and recipe.cleaning.near_duplicates == "Keep":
        yield _warning(
            Code.NEAR_DUPLICATES,
            f"{_rows(rows)} {'has' if rows == 1 else 'have'} nearly the same input and the same answer as an"
            " earlier row",
            "rows that differ",
            "set cleaning.nearDuplicates: Remove to remove them",
        )
    search = selection.near_search
    if search is not None and search.rows < search.of_rows:
        yield _warning(
            Code.NEAR_DUPLICATES_LIMITED,
            f"near duplicates were searched in {search.rows} of {search.of_rows} rows, those with the rarest"
            " answers, because the search of all would take too much memory",
            "",
            "divide the rows among several Datasets to search all of them, or set"
            " cleaning.nearDuplicates: Off",
        )


def _warning(code: Code, what: str, expected: str, fix: str) -> Issue:
    return Issue(code, what, expected, fix, severity="warning")


def _rows(rows: int) -> str:
    return f"{rows} row{'' if rows == 1 else 's'}"


def _were(rows: int) -> str:
    return "was" if rows == 1 else "were"
