"""A JSON list of objects, in UTF-8, read value by value: a list may be longer than memory.

By Python's own reader, not by ijson: that one writes "?" for half a character, ends at NaN and at integers of
more than 64 bits, lets a name be in an object twice, and takes memory without a bound for deep nesting.
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
MAX_CUT_CHARACTERS: Final = 12
"""An error so close to the end of what was read, or in a string without an end, may go when more is read."""


class _Broken(Exception):
    """Nothing more can be read of the list."""

    def __init__(self, issue: Issue) -> None:
        super().__init__(issue.what)
        self.issue = issue


def read(file: SourceFile, name: str | None) -> Iterator[RawRecord | InvalidRecord]:
    """Each object of the list, or what is wrong with it; what is no JSON ends the file."""
    number = 1
    with file.opened() as content:
        try:
            for value in _List(content).values():
                place = RowPosition(name, number)
                yield InvalidRecord(place, (value,)) if isinstance(value, Issue) else RawRecord(place, value)
                number += 1
        except _Broken as broken:
            yield InvalidRecord(RowPosition(name, number), (broken.issue,), ends_file=True)


class _List:
    """The part of the list that was read and not yet used."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self._decoder = Decoder()
        # A byte that is no UTF-8 becomes a surrogate, which belongs to no text, and is found in its value.
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self._text = ""
        self._at = 0
        self._ended = False
        self._line, self._column = 1, 0

    def values(self) -> Iterator[Fields | Issue]:
        """Each value as a record's fields, or what is wrong with it. Raises _Broken."""
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
            raise _Broken(
                Issue(
                    Code.SYNTAX,
                    f"there is more after the end of the list, {self._where(self._at)}",
                    "one list",
                    "remove it, or join the lists",
                )
            )

    def _next(self) -> str:
        """The next character that is no space; none at the end of the file."""
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
                self._go_on_after(error)
            except RecursionError:
                raise _Broken(_issue(NESTED_TOO_DEEP)) from None
            except ValueError as error:
                raise _Broken(_issue(f"not valid JSON: {error}")) from None

    def _go_on_after(self, error: json.JSONDecodeError) -> None:
        """Read more, where that can help."""
        is_cut = error.msg.startswith("Unterminated") or (
            error.pos >= len(self._text.rstrip(" \t\n\r")) - MAX_CUT_CHARACTERS
        )
        if is_cut and len(self._text) - self._at > MAX_ROW_BYTES:
            raise _Broken(
                Issue(
                    Code.ROW_TOO_LONG, f"longer than {MAX_ROW_BYTES >> 20} MiB", OBJECTS, "check the quotes"
                )
            )
        if not (is_cut and self._read_more()):
            raise self._broken(error.msg, error.pos, is_cut=is_cut)

    def _read_more(self) -> bool:
        """Forget what was used, and read as much as is left, at least a chunk; whether the file went on."""
        if self._ended:
            return False
        used, rest = self._text[: self._at], self._text[self._at :]
        self._line, self._column = self._position(used)
        packed = self._content.read(max(CHUNK_BYTES, len(rest)))
        self._ended = not packed
        self._text, self._at = rest + self._characters.decode(packed, final=self._ended), 0
        return True

    def _position(self, used: str) -> tuple[int, int]:
        """Line, from 1, and column, from 0, after some of the text."""
        lines = used.count("\n")
        column = len(used) - used.rfind("\n") - 1 if lines else self._column + len(used)
        return self._line + lines, column

    def _where(self, at: int) -> str:
        line, column = self._position(self._text[:at])
        return f"at line {line} column {column + 1}"

    def _broken(self, message: str, at: int, *, is_cut: bool = True) -> _Broken:
        if self._ended and (at >= len(self._text) or (is_cut and message.startswith("Unterminated"))):
            return _Broken(
                Issue(
                    Code.FILE_ENDS_EARLY,
                    "the file ends before its list does",
                    '"]" at the end',
                    "export or copy the file again",
                )
            )
        return _Broken(_issue(f"not valid JSON {self._where(at)}: {message}"))


def _issue(what: str) -> Issue:
    return Issue(Code.SYNTAX, f"{what}; nothing after it was read", OBJECTS, "correct it")
