# SPDX-License-Identifier: Apache-2.0
"""A JSON list of objects, in UTF-8, read value by value: a list may be larger than memory.

It uses Python's own reader, not ijson, which replaces surrogates with "?", stops at NaN and at integers of
more than 64 bits, accepts a name twice in an object, and takes unlimited memory for deep nesting.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any, Final

from finetune_trainer.data.containers.base import Fields, RawRecord
from finetune_trainer.data.containers.decoding import NESTED_TOO_DEEP, Decoder
from finetune_trainer.data.files import MAX_ROW_BYTES, SourceFile
from finetune_trainer.data.rowproblems import Code, InvalidRecord, Issue, RowPosition
from finetune_trainer.data.textchecks import SURROGATE
from finetune_trainer.data.unpacking import CHUNK_BYTES

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
