"""Checks of single values that hold in every format."""

import re
from typing import Any, Final

from finetune_trainer.prepare.problems import Issue

CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
TYPE_NAMES: Final = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def type_name(value: Any) -> str:
    """What a JSON value is, in words."""
    return TYPE_NAMES.get(type(value), "text")


def text_issue(field: str, value: Any) -> Issue | None:
    """What is wrong with a value that must be text with something in it."""
    if not isinstance(value, str):
        return Issue(f"{field} is {type_name(value)}", "text", f"write {field} as a string in quotes")
    if not value.strip():
        return Issue(f"{field} is empty", "text", f"fill {field} in, or remove the row")
    if found := CONTROL.search(value):
        return Issue(
            f"{field} has the control character U+{ord(found[0]):04X} at character {found.start() + 1}",
            "text with no control characters but tab and line ends",
            "remove the character",
        )
    if found := SURROGATE.search(value):
        return Issue(
            f"{field} has U+{ord(found[0]):04X}, half of a character, at character {found.start() + 1}",
            "whole characters",
            "export the row again as UTF-8, without cutting texts by bytes",
        )
    return None


def normal_line_ends(text: str) -> str:
    """CRLF and CR become LF, so that where a file was written decides nothing."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def listed(names: list[str]) -> str:
    """Names in quotes, at most ten, in a form that can be written as UTF-8."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    shown = ", ".join(f'"{name}"' for name in names[:10]) + more
    return shown.encode(errors="backslashreplace").decode()
