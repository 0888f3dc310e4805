# SPDX-License-Identifier: Apache-2.0
"""JSON Lines and JSON lists of objects, in UTF-8, and the decoder of JSON in files and in fields.

- JSON Lines have one object per line. A JSON list is read value by value, because it may be larger than
  memory.
- Tables hold lists and objects, such as messages and tools, as JSON texts in their cells. The same decoder
  reads these.
- The decoder reads JSON like Python's own reader, and detects names that occur twice in one object.
- Lists are not read by ijson, which replaces surrogates with "?", stops at NaN and at integers of more than
  64 bits, accepts a name twice in an object, and takes unlimited memory for deep nesting.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any, Final

import orjson

from finetune_trainer.data.containers.base import Fields, Line, RawRecord
from finetune_trainer.data.files import CHUNK_BYTES, MAX_ROW_BYTES, SourceFile
from finetune_trainer.data.row_problems import (
    SURROGATE,
    Code,
    InvalidRecord,
    Issue,
    RowPosition,
    field_names,
    type_name,
)

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


ONE_OBJECT: Final = "one JSON object on each line"


def read_json_lines(file: SourceFile, name: str | None) -> Iterator[Line]:  # noqa: ARG001 - the signature of all containers
    """Each line, for `LineDecoder` to decode. Blank lines are not records."""
    for number, line in enumerate(file.lines(), start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not content.isspace():
            yield number, content


class LineDecoder:
    """Decodes lines into records."""

    def __init__(self) -> None:
        self._decoder = Decoder()

    def decode(self, line: Line, name: str | None) -> RawRecord | InvalidRecord:
        """The line's object, or its issue; `name` is the file name for positions."""
        number, content = line
        position = RowPosition(name, number, number)
        fields = _fields(content, self._decoder)
        return (
            InvalidRecord(position, (fields,)) if isinstance(fields, Issue) else RawRecord(position, fields)
        )


def _fields(line: bytes, decoder: Decoder) -> Fields | Issue:
    if len(line) > MAX_ROW_BYTES:
        return Issue(
            Code.ROW_TOO_LONG, f"longer than {MAX_ROW_BYTES >> 20} MiB", ONE_OBJECT, "check the line ends"
        )
    if (fields := quick_fields(line)) is not None:
        return fields
    try:
        return decoder.fields(decoder.decode(line.decode()), ONE_OBJECT)
    except UnicodeDecodeError as error:
        return Issue(
            Code.ENCODING,
            f"byte {error.start + 1} (0x{line[error.start]:02X}) is not UTF-8",
            "UTF-8",
            "save the file as UTF-8",
        )
    except json.JSONDecodeError as error:
        return syntax_issue(f"not valid JSON at column {error.colno}: {error.msg}", ONE_OBJECT)
    except RecursionError:
        return syntax_issue(NESTED_TOO_DEEP, ONE_OBJECT)
    except ValueError as error:
        return syntax_issue(f"not valid JSON: {error}", ONE_OBJECT)


OBJECTS: Final = "a list of JSON objects"
SPACE: Final = re.compile(r"[ \t\n\r]*")
MAX_TRUNCATED_CHARACTERS: Final = 12
"""An error this close to the end of the text read so far, or in an unterminated string, may result from the
end of the chunk."""


class _ListBroken(Exception):
    """The rest of the list cannot be read."""

    def __init__(self, issue: Issue) -> None:
        super().__init__(issue.what)
        self.issue = issue


def read_json_list(file: SourceFile, name: str | None) -> Iterator[RawRecord | InvalidRecord]:
    """Each object of the list, or its issue. Invalid JSON ends the file."""
    number = 1
    with file.opened() as content:
        try:
            for value in _List(content).values():
                position = RowPosition(name, number)
                yield (
                    InvalidRecord(position, (value,))
                    if isinstance(value, Issue)
                    else RawRecord(position, value)
                )
                number += 1
        except _ListBroken as broken:
            yield InvalidRecord(RowPosition(name, number), (broken.issue,), ends_file=True)


class _List:
    """Reader of a list; holds the text that was read and not yet used."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self._decoder = Decoder()
        # A byte that is not UTF-8 becomes a surrogate, which makes its value invalid.
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self._text = ""
        self._at = 0
        self._ended = False
        self._line, self._column = 1, 0

    def values(self) -> Iterator[Fields | Issue]:
        """Each value as the fields of a record, or its issue. Raises _ListBroken."""
        self._read_more()
        self._text = self._text.removeprefix("\ufeff")
        self._take("[")
        if self._next() == "]":
            self._take("]")
        else:
            yield self._value()
            while self._next() == ",":
                self._take(",")
                yield self._value()
            self._take("]")
        if self._next():
            raise _ListBroken(
                Issue(
                    Code.SYNTAX,
                    f"the file has content after the end of the list, {self._where(self._at)}",
                    "one list",
                    "remove it, or join the lists",
                )
            )

    def _next(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def _take(self, mark: str) -> None:
        if self._next() != mark:
            raise self._broken(f"Expecting {mark!r}", self._at)
        self._at += 1

    def _value(self) -> Fields | Issue:
        self._next()
        value, end = self._decoded()
        source, self._at = self._text[self._at : end], end
        if not source.isascii() and (found := SURROGATE.search(source)):
            byte = ord(found[0]) & 0xFF
            return Issue(
                Code.ENCODING,
                f"has the byte 0x{byte:02X}, which is not UTF-8",
                "UTF-8",
                "save the file as UTF-8",
            )
        return self._decoder.fields(value, OBJECTS)

    def _decoded(self) -> tuple[Any, int]:
        while True:
            try:
                value, end = self._decoder.decode_at(self._text, self._at)
                if end < len(self._text) or not self._read_more():
                    return value, end
            except json.JSONDecodeError as error:
                self._read_more_after(error)
            except RecursionError:
                raise _ListBroken(_issue(NESTED_TOO_DEEP)) from None
            except ValueError as error:
                raise _ListBroken(_issue(f"not valid JSON: {error}")) from None

    def _read_more_after(self, error: json.JSONDecodeError) -> None:
        """Read more if that can remove the error; otherwise raise _ListBroken."""
        is_truncated = error.msg.startswith("Unterminated") or (
            error.pos >= len(self._text.rstrip(" \t\n\r")) - MAX_TRUNCATED_CHARACTERS
        )
        if is_truncated and len(self._text) - self._at > MAX_ROW_BYTES:
            raise _ListBroken(
                Issue(
                    Code.ROW_TOO_LONG, f"longer than {MAX_ROW_BYTES >> 20} MiB", OBJECTS, "check the quotes"
                )
            )
        if not (is_truncated and self._read_more()):
            raise self._broken(error.msg, error.pos, is_truncated=is_truncated)

    def _read_more(self) -> bool:
        """Drop the used text and read a chunk, or as much as is unused if that is more; False at the end."""
        if self._ended:
            return False
        used, rest = self._text[: self._at], self._text[self._at :]
        self._line, self._column = self._position(used)
        chunk = self._content.read(max(CHUNK_BYTES, len(rest)))
        self._ended = not chunk
        self._text, self._at = rest + self._characters.decode(chunk, final=self._ended), 0
        return True

    def _position(self, used: str) -> tuple[int, int]:
        """Line, from 1, and column, from 0, after the used text."""
        lines = used.count("\n")
        column = len(used) - used.rfind("\n") - 1 if lines else self._column + len(used)
        return self._line + lines, column

    def _where(self, at: int) -> str:
        line, column = self._position(self._text[:at])
        return f"at line {line} column {column + 1}"

    def _broken(self, message: str, at: int, *, is_truncated: bool = True) -> _ListBroken:
        if self._ended and (at >= len(self._text) or (is_truncated and message.startswith("Unterminated"))):
            return _ListBroken(
                Issue(
                    Code.FILE_ENDS_EARLY,
                    "the file ends before the list is closed",
                    '"]" at the end',
                    "export or copy the file again",
                )
            )
        return _ListBroken(_issue(f"not valid JSON {self._where(at)}: {message}"))


def _issue(what: str) -> Issue:
    return Issue(Code.SYNTAX, f"{what}; nothing after it was read", OBJECTS, "correct it")
