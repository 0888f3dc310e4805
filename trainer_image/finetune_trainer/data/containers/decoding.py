"""JSON as Python's own reader takes it, which tells names that are in one object twice."""

import json
import re
from typing import Any, Final

import orjson

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import field_names, type_name

NESTED_TOO_DEEP: Final = "nested too deep"
SPACED_NAME: Final = re.compile(rb'"[ \t\n\r]+:')
MAX_QUICK_LEVELS: Final = 32
"""Deeper records are left to Python's reader, whose limit depends on the stack."""


class Decoder:
    """Reads JSON values from text. Raises ValueError (also as JSONDecodeError), RecursionError."""

    def __init__(self) -> None:
        self.repeated: str | None = None
        """A name that an object of the last value has twice."""
        # One decoder for all values: json.loads makes one each time, which costs more than the decoding.
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        """The value that is all of the text."""
        self.repeated = None
        return self._decoder.decode(text)

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at an index, and the index after it."""
        self.repeated = None
        return self._decoder.raw_decode(text, start)

    def fields(self, value: Any, expected: str) -> Fields | Issue:
        """The last value as a record's fields, or why it is no record."""
        if self.repeated is not None:
            return syntax_issue(
                f"not valid JSON: the field {field_names([self.repeated])} is there twice", expected
            )
        if not isinstance(value, dict):
            return Issue(Code.SYNTAX, f"is {type_name(value)}", expected, "put the fields in { }")
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> Fields:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    self.repeated = name
                seen.add(name)
        return fields


def quick_fields(line: bytes) -> Fields | None:
    """The fields of a record by orjson, or None where Python's reader may read it otherwise.

    That is: what orjson refuses; names that are in one object twice, of which orjson takes the last; and
    fractions and integers of more than 64 bits, which it makes fractions.

    Raises:
        MemoryError: the record does not fit.
    """
    try:
        value = orjson.loads(line)
        if not isinstance(value, dict):
            return None
        names = len(value)
        for each in value.values():
            if not isinstance(each, str):
                names += _names(each)
    except ValueError:
        return None
    except SystemError as error:
        # Where memory is used up, orjson returns a value beside the error.
        if isinstance(error.__cause__, MemoryError):
            raise error.__cause__ from error
        raise
    # Each name ends with these two characters, each in a text adds to them, and no name counts twice.
    return value if names == line.count(b'":') and not SPACED_NAME.search(line) else None


def _names(value: Any, level: int = 0) -> int:
    """How many names all objects in a value have. Raises ValueError where orjson may be wrong."""
    if isinstance(value, str):
        return 0
    if isinstance(value, float) or level == MAX_QUICK_LEVELS:
        raise ValueError("to be read by Python's reader")
    if isinstance(value, dict):
        return len(value) + sum(_names(each, level + 1) for each in value.values())
    if isinstance(value, list):
        return sum(_names(each, level + 1) for each in value)
    return 0


def syntax_issue(what: str, expected: str) -> Issue:
    """The issue of text that is no JSON."""
    return Issue(Code.SYNTAX, what, expected, "correct the line")
