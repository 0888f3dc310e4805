# SPDX-License-Identifier: Apache-2.0
"""Cleaning of texts as the recipe specifies, after each row has its split."""

import re
import unicodedata
from dataclasses import replace
from typing import Final

from finetune_trainer.contract.dataset import Cleaning
from finetune_trainer.rows import Message, Row

SPACES: Final = re.compile(r"[ \t\u00a0\u2007\u202f]+")
"""Spaces, tabs and non-breaking spaces."""
LINE_END: Final = re.compile(r"[^\S\n]+(?=\n)")
EMPTY_LINES: Final = re.compile(r"\n{3,}")


def clean(row: Row, cleaning: Cleaning) -> Row:
    """Clean the content of every turn and the rejected answer; tool calls stay as they are.

    Returns the same object if nothing changes.
    """
    if not (cleaning.normalize_unicode or cleaning.normalize_whitespace):
        return row
    messages = tuple(_message(message, cleaning) for message in row.messages)
    rejected = None if row.rejected is None else _text(row.rejected, cleaning)
    if messages == row.messages and rejected == row.rejected:
        return row
    return replace(row, messages=messages, rejected=rejected)


def _message(message: Message, cleaning: Cleaning) -> Message:
    content = _text(message.content, cleaning)
    return message if content == message.content else replace(message, content=content)


def _text(text: str, cleaning: Cleaning) -> str:
    if cleaning.normalize_unicode:
        text = unicodedata.normalize("NFC", text)
    if cleaning.normalize_whitespace:
        text = SPACES.sub(" ", text)
        text = LINE_END.sub("", text)
        text = EMPTY_LINES.sub("\n\n", text)
        text = text.strip()
    return text
