# SPDX-License-Identifier: Apache-2.0
"""Guesses which columns of a file are the prompt and the answer, for a person who named none.

A guess follows the usual names of columns only. If none has such a name, the content suggests columns, which
is for a message, never for reading. A Dataset in a cluster names its columns: nothing guesses there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_trainer.data.containers.base import ContainerName, Fields
from finetune_trainer.data.containers.json_records import from_json
from finetune_trainer.data.files import FileDamaged, SourceFile
from finetune_trainer.data.formats.base import PAIR
from finetune_trainer.data.formats.field_meanings import label_of, probable_names
from finetune_trainer.data.formats.pairs import PromptCompletionFormat
from finetune_trainer.data.formats.registry import FORMATS, FormatDetector
from finetune_trainer.data.reading import FileSample, read_sample
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.row_problems import Issue

ROWS_PER_LABEL: Final = 3
"""Minimum average number of rows per value for the values of a column to be labels."""


@dataclass(frozen=True, slots=True)
class ColumnGuess:
    """What the columns of a file may be."""

    file: str
    container: ContainerName
    columns: tuple[str, ...]
    names: FieldNames | None
    """The columns by their usual names; None if no columns have such names."""
    suggested: FieldNames | None
    """The columns by their content, if `names` is None; None if the content shows nothing either."""


def guess_columns(file: SourceFile, recipe: Recipe) -> ColumnGuess | None:
    """A guess for a file that was not read before; None if the recipe or the usual names leave no question.

    Raises what SourceFile raises except FileDamaged.
    """
    if recipe.names != FieldNames() or not _may_be_pairs(recipe.format):
        return None
    try:
        sample = read_sample(file, recipe.format)
    except FileDamaged:
        # Reading the rows reports the damage with its position.
        return None
    if (
        sample is None
        or not sample.columns
        or set(sample.columns) >= PAIR
        or not _lacks_columns(sample, recipe)
    ):
        return None
    names = _turns(sample.records) or probable_names(sample.columns)
    suggested = _by_content(sample) if names is None else None
    return ColumnGuess(file.name, sample.container, sample.columns, names, suggested)


def _may_be_pairs(form: Any) -> bool:
    return form is None or issubclass(FORMATS[form], PromptCompletionFormat)


def _lacks_columns(sample: FileSample, recipe: Recipe) -> bool:
    """Whether no format reads the fields of the records."""
    records = sample.records or [dict.fromkeys(sample.columns)]
    found = FormatDetector(recipe).format_of(records, sample.container)
    return isinstance(found, Issue) or issubclass(FORMATS[found], PromptCompletionFormat)


def _turns(records: Sequence[Fields]) -> FieldNames | None:
    """The column of a conversation under another name than `messages`."""
    for name, value in records[0].items() if records else ():
        turns = from_json(value)
        if (
            isinstance(turns, list)
            and turns
            and isinstance(turns[0], dict)
            and turns[0].keys() >= {"role", "content"}
        ):
            return FieldNames(messages=name)
    return None


def _by_content(sample: FileSample) -> FieldNames | None:
    """The longest text as the prompt; as the answer the column with labels, or else the next longest text."""
    texts = {name: _texts(name, sample.records) for name in sample.columns}
    varied = {name: values for name, values in texts.items() if len(set(values)) > 1}
    by_length = sorted(varied, key=lambda name: -sum(map(len, varied[name])))
    if len(by_length) < len(PAIR):
        return None
    prompt, *others = by_length
    labels = [name for name in others if len(set(varied[name])) * ROWS_PER_LABEL <= len(varied[name])]
    return FieldNames(prompt=prompt, completion=(labels or others)[0])


def _texts(name: str, records: Iterable[Fields]) -> list[str]:
    """The values of a column that are texts, without numbers and truth values."""
    values = (record.get(name) for record in records)
    return [
        value
        for value in values
        if isinstance(value, str) and any(map(str.isalpha, value)) and label_of(value) is None
    ]
