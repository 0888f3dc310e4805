# SPDX-License-Identifier: Apache-2.0
"""JSON in the text of answers."""

import re
from collections.abc import Iterator
from typing import Any, Final

from finetune_trainer import canonical_json

FENCED: Final = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)
"""A code block of Markdown."""

Path = tuple[str | int, ...]
"""Names of fields and indexes of elements, from the root."""


def without_fence(text: str) -> str:
    """Return the inside of a Markdown code block if the whole text is one, otherwise the text."""
    found = FENCED.fullmatch(text.strip())
    return text if found is None else found[1]


def parse_fenced(text: str) -> Any:
    """Parse JSON that may be in a Markdown code block. Raises ValueError."""
    return canonical_json.parse(without_fence(text))


def has_json(text: str) -> bool:
    """Whether the text is JSON, which may be in a Markdown code block."""
    try:
        parse_fenced(text)
    except ValueError:
        return False
    return True


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The fields and elements without content of their own, and empty objects and lists, with their paths."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from leaves(each, (*path, index))
    else:
        yield path, value


def same(value: Any, other: Any) -> bool:
    """Whether two leaves are equal in JSON: 1 equals 1.0, but not true."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
