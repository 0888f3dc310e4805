# SPDX-License-Identifier: Apache-2.0
"""Decodes JSON like Python's own reader, and detects names that occur twice in one object.

The JSON is a record, or the text of a field: tables hold lists and objects, such as messages and tools, as
JSON texts in their cells.
"""

import json
import re
from typing import Any, Final

import orjson

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import field_names, type_name

NESTED_TOO_DEEP: Final = "nested too deeply"
SPACED_NAME: Final = re.compile(rb'"[ \t\n\r]+:')
MAX_QUICK_LEVELS: Final = 32
"""Maximum depth for orjson; Python's reader, whose limit depends on the stack, reads deeper records."""


class Decoder:
    """Reads JSON values from text. Raises ValueError (also as JSONDecodeError), RecursionError."""

    def __init__(self) -> None:
        self.repeated: str | None = None
        """A name that occurs twice in an object of the last value, if any."""
        # One decoder for all values: json.loads creates one per call, which takes longer than the decoding.
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        """Decode a text that is one value."""
        self.repeated = None
        return self._decoder.decode(text)

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """Decode the value that begins at an index; also returns the index after it."""
        self.repeated = None
        return self._decoder.raw_decode(text, start)

    def fields(self, value: Any, expected: str) -> Fields | Issue:
        """The last value as the fields of a record, or why it is not a record."""
        if self.repeated is not None:
            return syntax_issue(
                f"not valid JSON: the field {field_names([self.repeated])} occurs twice", expected
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


def from_json(value: Any) -> Any:
    """Return the list or object of which a text is the JSON, or the value itself if it is none."""
    decoded, problem = _decoded(value)
    return decoded if problem is None else value


def json_type_name(value: Any) -> str:
    """Return `type_name` of a value that `from_json` returned, and what is wrong with the JSON of a text."""
    problem = _decoded(value)[1]
    return f"text that is not valid JSON ({problem})" if problem else type_name(value)


def _decoded(value: Any) -> tuple[Any, str | None]:
    """The value of the JSON of a list or object, and what is wrong with it; other values as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value, None
    decoder = Decoder()
    try:
        decoded = decoder.decode(value)
    except json.JSONDecodeError as error:
        return None, f"{error.msg} at character {error.pos + 1}"
    except RecursionError:
        return None, NESTED_TOO_DEEP
    except ValueError as error:
        return None, str(error)
    repeated = decoder.repeated
    return decoded, None if repeated is None else f"the field {field_names([repeated])} occurs twice"


def quick_fields(line: bytes) -> Fields | None:
    """The fields of a record by orjson, or None if Python's reader may read it differently.

    Differences: records that orjson rejects; names that occur twice in one object, of which orjson uses the
    last; fractions; and integers of more than 64 bits, which orjson converts to fractions.

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
        # If memory runs out, orjson returns a value in addition to setting an error.
        if isinstance(error.__cause__, MemoryError):
            raise error.__cause__ from error
        raise
    # Each name ends with these two characters. Repeated names, or the characters in a text, change the count.
    return value if names == line.count(b'":') and not SPACED_NAME.search(line) else None


def _names(value: Any, level: int = 0) -> int:
    """Number of names of all objects in a value. Raises ValueError if orjson may have misread it."""
    if isinstance(value, str):
        return 0
    if isinstance(value, float) or level == MAX_QUICK_LEVELS:
        raise ValueError("only Python's reader reads this value exactly")
    if isinstance(value, dict):
        return len(value) + sum(_names(each, level + 1) for each in value.values())
    if isinstance(value, list):
        return sum(_names(each, level + 1) for each in value)
    return 0


def syntax_issue(what: str, expected: str) -> Issue:
    """The issue of a text that is not valid JSON."""
    return Issue(Code.SYNTAX, what, expected, "correct the line")
