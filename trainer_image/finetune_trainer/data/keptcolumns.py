# SPDX-License-Identifier: Apache-2.0
"""Columns of the source that stay with a prepared row, as texts. A model never sees them."""

import json
from collections.abc import Iterable
from typing import Any, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.textchecks import FORBIDDEN_CHARACTERS, normal_line_ends

MAX_KEPT_CHARACTERS: Final = 256
"""Max length of a kept value. Longer ones are truncated."""


def kept_columns(record: Fields, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Names and values of these columns, by name, without those that are missing, null or empty.

    A number, a list or another value becomes its JSON, or its text if it has none. Never makes a row invalid:
    characters that a row must not have become U+FFFD.
    """
    values = ((name, _text(record.get(name))) for name in sorted(set(names)))
    return tuple((name, value) for name, value in values if value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | float | list | dict):
        value = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    text = FORBIDDEN_CHARACTERS.sub("\ufffd", normal_line_ends(str(value)))
    return text if len(text) <= MAX_KEPT_CHARACTERS else text[: MAX_KEPT_CHARACTERS - 1] + "…"
