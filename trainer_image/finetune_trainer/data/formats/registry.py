# SPDX-License-Identifier: Apache-2.0
"""All formats. Each one describes, recognizes and reads its records; see `Format`."""

from collections.abc import Mapping
from typing import Final

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.containers.base import TableName
from finetune_trainer.data.formats.alpaca import AlpacaFormat
from finetune_trainer.data.formats.base import Format
from finetune_trainer.data.formats.chat import ChatMessagesFormat
from finetune_trainer.data.formats.doccano import DoccanoFormat
from finetune_trainer.data.formats.kto import KTOFormat
from finetune_trainer.data.formats.labelstudio import LabelStudioFormat
from finetune_trainer.data.formats.pairs import CSVFormat, ParquetFormat, PromptCompletionFormat, TSVFormat
from finetune_trainer.data.formats.preference import PreferenceFormat
from finetune_trainer.data.formats.sharegpt import ShareGPTFormat

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
