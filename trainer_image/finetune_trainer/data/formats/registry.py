"""All formats. Each one describes, recognises and reads itself; see `Format`."""

from collections.abc import Mapping
from typing import Final

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.containers.base import TableName
from finetune_trainer.data.formats.alpaca import Alpaca
from finetune_trainer.data.formats.base import Format
from finetune_trainer.data.formats.chat import Chats
from finetune_trainer.data.formats.doccano import Doccano
from finetune_trainer.data.formats.kto import KTO
from finetune_trainer.data.formats.labelstudio import LabelStudio
from finetune_trainer.data.formats.pairs import CSV, TSV, Pairs, Parquet
from finetune_trainer.data.formats.preference import Preference
from finetune_trainer.data.formats.sharegpt import ShareGPT

FORMATS: Final[Mapping[DataFormat, type[Format]]] = {
    form.name: form
    for form in (
        LabelStudio,
        ShareGPT,
        Chats,
        Preference,
        KTO,
        Alpaca,
        Doccano,
        CSV,
        TSV,
        Parquet,
        Pairs,
    )
}
"""In the order in which they are tried: of two formats that a record suggests equally, the first wins."""


def pairs_in(table: TableName | None) -> type[Format]:
    """The format of prompts with completions in a table; None: in JSON."""
    return next(form for form in (CSV, TSV, Parquet, Pairs) if form.table == table)
