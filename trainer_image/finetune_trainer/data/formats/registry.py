# SPDX-License-Identifier: Apache-2.0
"""All formats, and the detection of the format of a file's records.

Each format describes, recognizes and reads its records; see `Format`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.containers.base import ContainerName, Fields, TableName
from finetune_trainer.data.formats.alpaca import AlpacaFormat
from finetune_trainer.data.formats.base import Format, FormatHints
from finetune_trainer.data.formats.chat import ChatMessagesFormat
from finetune_trainer.data.formats.doccano import DoccanoFormat
from finetune_trainer.data.formats.field_meanings import mapped_columns
from finetune_trainer.data.formats.kto import KTOFormat
from finetune_trainer.data.formats.label_studio import LabelStudioFormat
from finetune_trainer.data.formats.pairs import CSVFormat, ParquetFormat, PromptCompletionFormat, TSVFormat
from finetune_trainer.data.formats.preference import PreferenceFormat
from finetune_trainer.data.formats.sharegpt import CONVERSATIONS, ShareGPTFormat
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_problems import Code, Issue, field_name, field_names, quote_names

FORMATS: Final[Mapping[DataFormat, type[Format]]] = {
    form.name: form
    for form in (
        LabelStudioFormat,
        ShareGPTFormat,
        ChatMessagesFormat,
        PreferenceFormat,
        KTOFormat,
        AlpacaFormat,
        DoccanoFormat,
        CSVFormat,
        TSVFormat,
        ParquetFormat,
        PromptCompletionFormat,
    )
}
"""Formats in order of precedence: of two formats that match a record equally, the first wins."""


def prompt_completion_format(table: TableName | None) -> type[Format]:
    """The format of prompts with completions in a table; None means JSON."""
    return next(
        form for form in (CSVFormat, TSVFormat, ParquetFormat, PromptCompletionFormat) if form.table == table
    )


MIN_FIELDS: Final = 2
"""Minimum number of fields that can be a prompt and its completion."""
SAMPLE_ROWS: Final = 100
"""Number of records from which the format of a file is detected."""


class FormatDetector:
    """Detects the format of records by their fields and by the names in the recipe."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises ValueError for an invalid template."""
        self._recipe = recipe
        self._clues = FormatHints(recipe.names)

    def format_of(self, records: Sequence[Fields], container: ContainerName) -> DataFormat | Issue:
        """The format of most records, or why none is chosen. Without records: prompts with completions.

        If a label may rate the answers, the user must set the format.
        """
        clues = self._clues.within(container)
        found = [form for record in records if (form := _format_of(record, clues)) is not None]
        if found:
            form = Counter(found).most_common(1)[0][0]
            return self._ambiguity(form, records) or form
        # The header check then reports what a table lacks, and each record reports why it cannot be read.
        if clues.table or not records:
            return prompt_completion_format(clues.table).name
        return Issue(
            Code.FILE_UNKNOWN,
            f"the rows have {field_names(records[0], 'other fields', 'the fields ')}"
            if records[0]
            else "the rows have no fields",
            f'{quote_names(clues.prompt)} and "{clues.completion}", or "{clues.messages}"',
            _advice(records[0]),
        )

    def _ambiguity(self, form: DataFormat, records: Sequence[Fields]) -> Issue | None:
        reader = FORMATS[form](self._recipe)
        found = next((issue for record in records if (issue := reader.rating_issue(record))), None)
        return None if found is None else replace(found, code=Code.FILE_UNKNOWN)


def _format_of(record: Fields, clues: FormatHints) -> DataFormat | None:
    """The format that best matches a record; None if no format matches."""
    matches = {name: match for name, form in FORMATS.items() if (match := form.match(record, clues))}
    # max returns the first of several equal matches.
    return max(matches, key=lambda name: matches[name], default=None)


def _advice(record: Fields) -> str:
    """What to do about records whose format is unknown."""
    for name, value in record.items():
        turn = value[0] if isinstance(value, list) and value else None
        if isinstance(turn, dict) and turn.keys() >= {"role", "content"}:
            return f"set columns.messages: {field_name(name)}"
        if isinstance(turn, dict) and turn.keys() >= {"from", "value"}:
            return f"rename {field_name(name)} to {CONVERSATIONS}"
    if mapped := mapped_columns(record):
        return f"set {mapped}"
    if len(record) < MIN_FIELDS:
        return (
            "write each row as a prompt and its completion: text alone has no answer to learn, and formatting"
            " for a model is added by its chat template"
        )
    return "name the field of the prompt in columns.prompt and that of the answer in columns.completion"
