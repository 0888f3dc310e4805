"""Checks of single values that hold in every format."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

from finetune_trainer.data.rowproblems import Code, Issue, quoted

FORBIDDEN_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters other than tab and line ends, and halves of characters."""
INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
"""Characters that a reader does not see: of no width, marks of direction, selectors of a glyph."""
SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
MAX_NAMES: Final = 200
"""A table with more columns is looked at by its report only."""
MAX_NAME_CHARACTERS: Final = 100
"""Of a name that a message lists."""
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
"""What looks like a field's name, and neither like a sentence nor like a key."""


def type_name(value: Any) -> str:
    """What a value is, in words."""
    return TYPE_NAMES.get(type(value)) or f"of the type {type(value).__name__}"


def shown(value: Any) -> str:
    """A value where something else was expected: a text in quotes, cut short; of others the type.

    It is a quotation of the rows.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return type_name(value)
    text = str(value)
    cut = text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"
    return quoted(repr(cut), "another text") if isinstance(value, str) else quoted(cut, "another number")


def field_name(name: str) -> str:
    """The name of a field of the rows, as a quotation of them where it does not look like a name."""
    return name if NAME.fullmatch(name) else quoted(printable(name), "a field")


def field_names(names: Iterable[str], noun: str = "fields", prefix: str = "") -> str:
    """Names of fields of the rows, listed after a prefix; a quotation of them unless all look like names.

    A table without a header has its first row's texts as names.
    """
    every = list(names)
    if len(every) <= MAX_NAMES and all(map(NAME.fullmatch, every)):
        return prefix + listed(every)
    return quoted(prefix + listed(every), f"{len(every)} {noun}")


def text_issue(field: str, value: Any) -> Issue | None:
    """What is wrong with a value that must be text with something in it."""
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
    number, place = ord(found[0]), found.start() + 1
    if SURROGATE.match(found[0]):
        return Issue(
            Code.BROKEN_CHARACTER,
            f"{field} has U+{number:04X}, half of a character, at character {place}",
            "whole characters",
            "export the row again as UTF-8, without cutting texts by bytes",
            column=field,
        )
    return Issue(
        Code.CONTROL_CHARACTER,
        f"{field} has the control character U+{number:04X} at character {place}",
        "text with no control characters but tab and line ends",
        "remove the character",
        column=field,
    )


def normal_line_ends(text: str) -> str:
    """CRLF and CR become LF, so that where a file was written decides nothing."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def visible_text(text: str) -> str:
    """The text as a reader sees it: in one Unicode form, without invisible characters, with single blanks."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
    return " ".join(text.split())


def listed(names: Iterable[str]) -> str:
    """Names in quotes, at most ten, in a form that can be written as UTF-8."""
    every = [
        name if len(name) <= MAX_NAME_CHARACTERS else name[: MAX_NAME_CHARACTERS - 1] + "…" for name in names
    ]
    more = f" and {len(every) - 10} more" if len(every) > 10 else ""
    text = ", ".join(f'"{name}"' for name in every[:10]) + more
    return printable(text)


def printable(text: str) -> str:
    """The text in a form that can be written as UTF-8: halves of characters as their numbers."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
