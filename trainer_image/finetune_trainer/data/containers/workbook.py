# SPDX-License-Identifier: Apache-2.0
"""The parts of an Excel workbook (.xlsx): a ZIP archive of XML files, read within limits.

Anybody can write an archive that unpacks to terabytes, or XML that fills the memory. So:

- The sizes in the archive's directory are checked before a part is read. zipfile never unpacks more.
- XML is read as events, and only up to the end of what is needed. A document type, in which entities could
  be declared, is refused; no workbook has one.
- Names of other files, such as external links, are never followed.

openpyxl's own reader has none of these limits: it builds each row as a tree, and fills rows up to the columns
that the file claims to have. It provides the number formats of dates.
"""

import posixpath
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from typing import IO, Any, Final
from xml.parsers import expat

from finetune_trainer.data.files import CHUNK_BYTES
from finetune_trainer.data.row_problems import Code, Issue

MAX_PARTS: Final = 10_000
MAX_DIRECTORY_BYTES: Final = 2 << 20
MAX_SHEET_BYTES: Final = 512 << 20
MAX_STRINGS_BYTES: Final = 64 << 20
"""Maximum size of the texts that cells share. They are all in memory."""
MAX_PART_BYTES: Final = 8 << 20
"""Maximum size of any other part."""
MAX_TAG_BYTES: Final = 1 << 20
MAX_LEVELS: Final = 64

END_OF_DIRECTORY: Final = b"PK\x05\x06"
LOCATOR_OF_LARGE_DIRECTORY: Final = b"PK\x06\x07"
END_BYTES, COMMENT_BYTES, LOCATOR_BYTES = 22, (1 << 16) - 1, 20

ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What zipfile raises for archives that it cannot read, some with a password."""


class WorkbookRefused(Exception):
    """A workbook cannot be read. `issue` gives the reason."""

    def __init__(self, issue: Issue) -> None:
        super().__init__(issue.what)
        self.issue = issue


def damaged(what: str) -> WorkbookRefused:
    """The refusal of a workbook that no spreadsheet program writes."""
    return WorkbookRefused(
        Issue(Code.FILE_DAMAGED, f"the workbook is damaged: {what}", "a complete .xlsx file", "save it again")
    )


def too_large(what: str) -> WorkbookRefused:
    """The refusal of a workbook that exceeds a limit."""
    return WorkbookRefused(Issue(Code.UNSUPPORTED, f"the workbook {what}", "", "save the sheet as CSV"))


class XmlEvents:
    """Receives the elements and texts of a part. `is_done` ends the reading early."""

    is_done = False

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        """An element begins. Names have no namespaces."""

    def text(self, text: str) -> None:
        """A piece of text."""

    def end(self, name: str) -> None:
        """An element ends."""


class _Parser:
    """Feeds events from XML within limits."""

    def __init__(self, events: XmlEvents) -> None:
        self._events = events
        self._level = 0
        self._silent_bytes = 0
        self._was_called = False
        self._names: dict[str, str] = {}
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text

    def feed(self, chunk: bytes, *, is_last: bool) -> None:
        """Parse the next bytes. Raises WorkbookRefused."""
        self._was_called = False
        try:
            self._parser.Parse(chunk, is_last)
        except expat.ExpatError as error:
            raise damaged(f"not valid XML ({error})") from error
        except (LookupError, ValueError) as error:
            raise damaged("XML of an unknown encoding") from error
        self._silent_bytes = 0 if self._was_called else self._silent_bytes + len(chunk)
        if self._silent_bytes > MAX_TAG_BYTES:
            raise damaged(f"a tag of more than {MAX_TAG_BYTES >> 20} MiB")

    def _local(self, name: str) -> str:
        found = self._names.get(name)
        if found is None:
            found = name.rpartition(" ")[2]
            if len(self._names) < MAX_PARTS:
                self._names[name] = found
        return found

    def _doctype(self, *_: Any) -> None:
        raise damaged("XML with a document type")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._was_called = True
        self._level += 1
        if self._level > MAX_LEVELS:
            raise damaged("XML nested too deeply")
        self._events.start(self._local(name), {self._local(key): value for key, value in attributes.items()})

    def _end(self, name: str) -> None:
        self._was_called = True
        self._level -= 1
        self._events.end(self._local(name))

    def _text(self, text: str) -> None:
        self._was_called = True
        self._events.text(text)


class Archive:
    """The parts of a workbook by their names.

    `count` is called with the number of unpacked bytes, and may raise.
    """

    def __init__(self, content: IO[bytes], count: Callable[[int], None]) -> None:
        """Raises WorkbookRefused."""
        _require_small_directory(content)
        self._count = count
        try:
            self._archive = zipfile.ZipFile(content)
        except ZIP_ERRORS as error:
            raise damaged(f"the archive cannot be read ({error})") from error
        self._parts = {info.filename.lower(): info for info in self._archive.infolist()}

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._parts

    def parse(self, name: str, events: XmlEvents, limit_bytes: int = MAX_PART_BYTES) -> None:
        """Read a part to its end, or until the events are done. Raises WorkbookRefused."""
        for _ in self.steps(name, events, limit_bytes):
            pass

    def steps(self, name: str, events: XmlEvents, limit_bytes: int) -> Iterator[None]:
        """Like `parse`, one chunk at a time."""
        info = self._parts.get(name.lower())
        if info is None:
            raise damaged("a part of it is missing")
        if info.file_size > limit_bytes:
            raise too_large(
                f"has {info.file_size >> 20} MiB of XML in a part of at most {limit_bytes >> 20} MiB"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise damaged("an unusual compression")
        parser = _Parser(events)
        try:
            with self._archive.open(info) as part:
                while not events.is_done:
                    chunk = part.read(CHUNK_BYTES)
                    self._count(len(chunk))
                    parser.feed(chunk, is_last=not chunk)
                    yield
                    if not chunk:
                        return
        except ZIP_ERRORS as error:
            raise damaged(f"a part of it cannot be unpacked ({error})") from error


def _require_small_directory(content: IO[bytes]) -> None:
    """Raises WorkbookRefused if the directory, which zipfile reads as a whole, is large or missing."""
    size = content.seek(0, 2)
    content.seek(max(0, size - END_BYTES - COMMENT_BYTES - LOCATOR_BYTES))
    tail = content.read()
    at = tail.rfind(END_OF_DIRECTORY)
    if at < 0 or len(tail) - at < END_BYTES:
        raise damaged("it has no end")
    parts, directory_bytes = struct.unpack_from("<HL", tail, at + 10)
    is_large = tail[max(0, at - LOCATOR_BYTES) : at].startswith(LOCATOR_OF_LARGE_DIRECTORY)
    if is_large or parts > MAX_PARTS or directory_bytes > MAX_DIRECTORY_BYTES:
        raise too_large(f"has more than {MAX_PARTS} parts")


@dataclass
class _Relationships(XmlEvents):
    """The other parts that a part names."""

    folder: str
    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Kind and name of each part by id, without parts outside of the archive."""

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if name == "Relationship" and attributes.get("TargetMode") != "External":
            kind = attributes.get("Type", "").rpartition("/")[2]
            target = posixpath.normpath(posixpath.join("/", self.folder, attributes.get("Target", "")))
            self.found[attributes.get("Id", "")] = (kind, target.lstrip("/"))


def _related(archive: Archive, name: str) -> dict[str, tuple[str, str]]:
    folder, base = posixpath.split(name)
    found = _Relationships(folder)
    part = posixpath.join(folder, "_rels", f"{base}.rels")
    if part in archive:
        archive.parse(part, found)
    return found.found


@dataclass
class _Sheets(XmlEvents):
    """The sheets of a workbook in their order."""

    visible: list[tuple[str, str]] = field(default_factory=list)
    """Name and id of each sheet that is not hidden."""
    begins_in_1904: bool = False

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if name == "workbookPr":
            self.begins_in_1904 = attributes.get("date1904", "0").lower() in ("1", "true", "on")
        elif name == "sheet" and attributes.get("state", "visible") == "visible":
            self.visible.append((attributes.get("name", ""), attributes.get("id", "")))


class SharedTexts(XmlEvents):
    """The texts that cells share."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._parts: list[str] = []
        self._is_text = False
        self._phonetic = 0

    def start(self, name: str, attributes: Mapping[str, str]) -> None:  # noqa: ARG002 - texts have none
        """Begin a text, or a part of it."""
        if name == "si":
            self._parts = []
        elif name == "rPh":
            # How a Japanese text is pronounced.
            self._phonetic += 1
        self._is_text = name == "t" and not self._phonetic

    def text(self, text: str) -> None:
        """Add a piece."""
        if self._is_text:
            self._parts.append(text)

    def end(self, name: str) -> None:
        """End a text."""
        self._is_text = False
        if name == "rPh":
            self._phonetic -= 1
        elif name == "si":
            self.texts.append(unescape("".join(self._parts)))


def whole_number(text: str) -> int:
    """A number of at most nine digits; -1 for any other text."""
    return int(text) if text.isdecimal() and len(text) < 10 else -1


ESCAPED: Final = re.compile("_x([0-9A-Fa-f]{4})_")


def unescape(text: str) -> str:
    """A text with the characters that XML cannot hold, which Excel writes as `_x000D_`."""
    return ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "_x" in text else text


class _Styles(XmlEvents):
    """The number formats of cells."""

    def __init__(self) -> None:
        self.codes: dict[int, str] = {}
        self.of_cells: list[int] = []
        self._is_cells = False

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        number = whole_number(attributes.get("numFmtId", "0"))
        if name == "numFmt":
            self.codes[number] = attributes.get("formatCode", "")[:MAX_CODE_CHARACTERS]
        elif name == "cellXfs":
            self._is_cells = True
        elif name == "xf" and self._is_cells:
            self.of_cells.append(number)

    def end(self, name: str) -> None:
        if name == "cellXfs":
            self._is_cells = False


EAST_ASIAN_DATES: Final = frozenset((*range(27, 37), *range(50, 59)))
"""Numbers of formats that are dates in East Asian versions, and have no code in the file."""
DIGITS: Final = re.compile("0{2,32}")
MAX_CODE_CHARACTERS: Final = 255
"""Maximum length of a number format in Excel."""
MAX_EXACT: Final = 1 << 53
"""Whole numbers up to this are exact."""


class NumberFormats:
    """Shows numbers as their cells do, if that is a date, a time or leading zeros."""

    def __init__(self, styles: _Styles, *, begins_in_1904: bool) -> None:
        from openpyxl.utils.datetime import MAC_EPOCH, WINDOWS_EPOCH

        self._styles = styles
        self._epoch = MAC_EPOCH if begins_in_1904 else WINDOWS_EPOCH
        self._shown: dict[int, Callable[[float], str]] = {}

    def text(self, number: str, style: int) -> str:
        """The text of a number in a cell of this style; the number itself if it is none."""
        try:
            value = float(number)
        except ValueError:
            return number
        if style not in self._shown:
            self._shown[style] = self._form(style)
        try:
            return self._shown[style](value)
        except (ValueError, OverflowError):
            # No calendar has the date.
            return number

    def _form(self, style: int) -> Callable[[float], str]:
        from openpyxl.styles.numbers import BUILTIN_FORMATS, is_date_format, is_timedelta_format

        cells = self._styles.of_cells
        number = cells[style] if 0 <= style < len(cells) else 0
        code = self._styles.codes.get(number) or BUILTIN_FORMATS.get(number) or ""
        if is_timedelta_format(code):
            return self._duration
        if is_date_format(code) or (number in EAST_ASIAN_DATES and not code):
            return self._date
        if DIGITS.fullmatch(code):
            return lambda value: f"{round(value):0{len(code)}d}"
        return _plain

    def _date(self, value: float) -> str:
        from openpyxl.utils.datetime import from_excel

        found: Any = from_excel(value, self._epoch)
        if isinstance(found, datetime) and found.time() == time():
            return found.date().isoformat()
        return str(found.isoformat())

    def _duration(self, value: float) -> str:
        seconds = round(timedelta(days=value).total_seconds())
        hours, rest = divmod(abs(seconds), 3600)
        return f"{'-' if seconds < 0 else ''}{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _plain(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) <= MAX_EXACT else f"{value:.15g}"


@dataclass(frozen=True)
class Workbook:
    """The first visible sheet of a workbook, and what its cells refer to."""

    archive: Archive
    sheet: str
    """Name of the sheet."""
    part: str
    """Name of the part with the sheet's cells."""
    texts: list[str]
    formats: NumberFormats

    @classmethod
    def of(cls, archive: Archive) -> "Workbook":
        """Find the sheet and read texts and styles. Raises WorkbookRefused."""
        roots = [part for kind, part in _related(archive, "").values() if kind == "officeDocument"]
        if not roots or not re.search("(^|/)workbook[^/]*[.]xml$", roots[0]):
            raise WorkbookRefused(
                Issue(
                    Code.FILE_UNKNOWN,
                    "the file is a ZIP archive without an Excel workbook",
                    ".xlsx, JSON Lines or CSV",
                    "unpack it, or export the rows as CSV",
                )
            )
        sheets = _Sheets()
        archive.parse(roots[0], sheets)
        related = _related(archive, roots[0])
        for name, key in sheets.visible:
            kind, part = related.get(key, ("", ""))
            if kind == "worksheet":
                return cls(archive, name, part, *_references(archive, related, sheets))
        raise WorkbookRefused(
            Issue(
                Code.FILE_EMPTY,
                "the workbook has no visible sheet with cells",
                "rows",
                "add a sheet with rows",
            )
        )


def _references(
    archive: Archive, related: Mapping[str, tuple[str, str]], sheets: _Sheets
) -> tuple[list[str], NumberFormats]:
    parts = {kind: part for kind, part in related.values() if part in archive}
    texts, styles = SharedTexts(), _Styles()
    if "sharedStrings" in parts:
        archive.parse(parts["sharedStrings"], texts, MAX_STRINGS_BYTES)
    if "styles" in parts:
        archive.parse(parts["styles"], styles)
    return texts.texts, NumberFormats(styles, begins_in_1904=sheets.begins_in_1904)
