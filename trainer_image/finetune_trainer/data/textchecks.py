# SPDX-License-Identifier: Apache-2.0
"""Checks and display of single values, for all formats."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

from finetune_trainer.data.rowproblems import Code, Issue, quoted

FORBIDDEN_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters except tab and line ends, and surrogates."""
INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
"""Characters that a reader does not see: zero-width characters, direction marks, variation selectors."""
OUTER_SPACES: Final = re.compile("^ +| +$| {2,}")
"""Spaces that a reader does not see."""
SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
MAX_NAMES: Final = 200
"""Maximum number of names that are checked for looking like field names; more are shown in reports only."""
MAX_NAME_CHARACTERS: Final = 100
"""Maximum length of a name in a message."""
TYPE_NAMES: Final = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    bytes: "bytes",
    type(None): "null",
}
MAX_SHOWN_CHARACTERS: Final = 40
NAME: Final = re.compile(r"[A-Za-z]{1,24}(?:[_.-][A-Za-z]{1,24}){0,3}(?:[_-]?[0-9]{1,3})?")
"""Texts that look like a field name, and not like a sentence or a key."""


def type_name(value: Any) -> str:
    """The type of a value in words."""
    return TYPE_NAMES.get(type(value)) or f"of the type {type(value).__name__}"


def shown(value: Any) -> str:
    """An unexpected value for a message: a truncated text in quotes, a number, or the type of another value.

    Texts and numbers are marked as quotations of rows.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return type_name(value)
    text = str(value)
    short = text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"
    return quoted(repr(short), "another text") if isinstance(value, str) else quoted(short, "another number")


def field_name(name: str) -> str:
    """The name of a field, marked as a quotation of rows unless it looks like a name."""
    return name if NAME.fullmatch(name) else quoted(printable(name), "a field")


def field_names(names: Iterable[str], noun: str = "fields", prefix: str = "") -> str:
    """Names of fields, listed after a prefix, and marked as a quotation of rows unless all look like names.

    In a table without a header, the texts of the first row are the names.
    """
    all_names = list(names)
    if len(all_names) <= MAX_NAMES and all(map(NAME.fullmatch, all_names)):
        return prefix + listed(all_names)
    return quoted(prefix + listed(all_names), f"{len(all_names)} {noun}")


def text_issue(field: str, value: Any) -> Issue | None:
    """The issue of a value that must be a non-empty text; None if it is valid."""
    if not isinstance(value, str):
        return Issue(
            Code.FIELD_TYPE,
            f"{field} is {type_name(value)}",
            "text",
            f"write {field} as a string in quotes",
            column=field,
        )
    if not value or value.isspace():
        return Issue(
            Code.FIELD_EMPTY, f"{field} is empty", "text", f"fill {field} in, or remove the row", column=field
        )
    found = FORBIDDEN_CHARACTERS.search(value)
    if found is None:
        return None
    number, position = ord(found[0]), found.start() + 1
    if SURROGATE.match(found[0]):
        return Issue(
            Code.BROKEN_CHARACTER,
            f"{field} has the unpaired surrogate U+{number:04X} at character {position}",
            "complete characters",
            "export the row again as UTF-8, without truncating texts by bytes",
            column=field,
        )
    return Issue(
        Code.CONTROL_CHARACTER,
        f"{field} has the control character U+{number:04X} at character {position}",
        "text without control characters other than tab and line ends",
        "remove the character",
        column=field,
    )


def normal_line_ends(text: str) -> str:
    """Convert CRLF and CR to LF, so that the platform that wrote a file makes no difference."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def visible_text(text: str) -> str:
    """The text as a reader sees it: in Unicode form NFKC, without invisible characters, spaces collapsed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
    return " ".join(text.split())


def listed(names: Iterable[str]) -> str:
    """Names in quotes, at most ten, in a form that UTF-8 can encode."""
    short = [
        name if len(name) <= MAX_NAME_CHARACTERS else name[: MAX_NAME_CHARACTERS - 1] + "…" for name in names
    ]
    more = f" and {len(short) - 10} more" if len(short) > 10 else ""
    text = ", ".join(f'"{name}"' for name in short[:10]) + more
    return printable(text)


def printable(text: str) -> str:
    """The text in a form that UTF-8 can encode: surrogates as escape sequences."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def with_hidden_characters(text: str) -> str:
    """A text in quotes. Outer and repeated spaces are visible, and other hidden characters are escaped."""
    text = OUTER_SPACES.sub(lambda spaces: "␣" * len(spaces[0]), text)
    return f"'{''.join(_escaped(each) if _is_hidden(each) else each for each in text)}'"


def _is_hidden(character: str) -> bool:
    """Whether a reader may not see a character, or confuse it with another one."""
    return (
        INVISIBLE.match(character) is not None
        or (character.isspace() and character != " ")
        or unicodedata.normalize("NFKD", character) != character
        or unicodedata.combining(character) > 0
    )


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"
