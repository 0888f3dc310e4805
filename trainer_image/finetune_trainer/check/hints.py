# SPDX-License-Identifier: Apache-2.0
"""Translate hints for the command line: fields of a Dataset become options."""

import re
from typing import Final

FIELD: Final = re.compile(
    r"\b(?P<block>split|cleaning|checks|columns)\.(?P<field>[a-z][A-Za-z]*)(?:: (?P<value>[A-Za-z0-9.]+))?"
)
FORMAT: Final = re.compile(r"\b(?P<verb>set|name|leave) format\b(?:: (?P<value>[A-Za-z]+))?")
NAMED: Final = {"split.column": "split-column", "split.fromFiles": "split-from-files"}


def as_options(text: str) -> str:
    """Replace fields with options in a hint: `columns.prompt` becomes `--prompt`."""
    text = FIELD.sub(_option, text)
    text = FORMAT.sub(lambda found: f"{found['verb']} --format" + _value(found), text)
    text = re.sub(r"\bset template:? ", "set --template ", text)
    # Options are copied to the command line as they are.
    text = re.sub(r"(--(?:prompt|template) (?:\"[^\"]+\"|\S+)) and (?=--completion)", r"\1 ", text)
    text = re.sub(r"\bkeepColumns\b", "--keep-column", text)
    return re.sub(r"\bin columns\b", "in --columns", text)


def _option(found: re.Match[str]) -> str:
    name = NAMED.get(f"{found['block']}.{found['field']}")
    option = name or re.sub("([A-Z])", lambda letter: f"-{letter[1].lower()}", found["field"])
    return f"--{option}{_value(found)}"


def _value(found: re.Match[str]) -> str:
    value = found["value"]
    return "" if value is None or value == "true" else f" {value}"
