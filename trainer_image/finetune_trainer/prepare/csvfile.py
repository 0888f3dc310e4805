"""CSV as in RFC 4180: a header, commas, texts with commas or line ends in double quotes, in UTF-8."""

import codecs
import csv
from collections.abc import Iterable, Iterator
from typing import Final

from finetune_trainer.prepare.problems import Invalid, Issue, Place
from finetune_trainer.prepare.records import PairRecords, RawRow
from finetune_trainer.prepare.source import MAX_ROW_BYTES
from finetune_trainer.prepare.text import SURROGATE, listed

UNCLOSED: Final = ("field larger than field limit", "unexpected end of data")
"""What the csv module says when a quote is never closed: beyond a bound, or at the end of the file."""


def read(lines: Iterable[bytes], records: PairRecords, file: str | None) -> Iterator[RawRow | Invalid]:
    """Each record below the header as a row or as what is wrong with it; empty lines are no records."""
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(_decoded(lines), strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        place = Place(file, number + 1, reader.line_num + 1) if header is not None else Place(file)
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            number += 1
            ends_file = header is None or str(error).startswith(UNCLOSED)
            yield Invalid(place, (_syntax_issue(error, ends_file=ends_file),), ends_file)
            if ends_file:
                return
            continue
        if not record:
            continue
        if header is None:
            header = record
            if issue := header_issue(header, records):
                yield Invalid(place, (issue,), ends_file=True)
                return
            continue
        number += 1
        result = _row(header, record, records)
        yield result if isinstance(result, RawRow) else Invalid(place, result)


def header_issue(header: list[str], records: PairRecords) -> Issue | None:
    """What is wrong with a header."""
    if len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), None)):
        name = "tabs" if separator == "\t" else f'"{separator}"'
        return Issue(f"the header is separated by {name}", "commas", "export it again separated by commas")
    if any(SURROGATE.search(name) for name in header):
        return Issue(f"the header is not UTF-8: {listed(header)}", "UTF-8", "save the file as UTF-8")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        return Issue(f"the header has {listed(twice)} twice", "each name once", "rename one of the columns")
    wanted = (records.names.prompt, records.names.completion, records.names.group)
    if absent := [name for name in wanted if name is not None and name not in header]:
        return Issue(
            f"the header has no column {listed(absent)}, but {listed(header)}",
            f"the column{'s' if len(absent) > 1 else ''} {listed(absent)}",
            "name the right columns in columns (and split.groupBy)",
        )
    return None


def _row(header: list[str], record: list[str], records: PairRecords) -> RawRow | tuple[Issue, ...]:
    if len(record) != len(header):
        fix = "quote texts with commas" if len(record) > len(header) else "add what is missing"
        return (Issue(f"has {len(record)} fields", f"{len(header)}, as in the header", fix),)
    for name, value in zip(header, record, strict=True):
        if found := SURROGATE.search(value):
            byte = ord(found[0]) & 0xFF
            issue = Issue(
                f"{name} has the byte 0x{byte:02X}, which is not UTF-8", "UTF-8", "save the file as UTF-8"
            )
            return (issue,)
    return records.read(dict(zip(header, record, strict=True)))


def _syntax_issue(error: csv.Error, *, ends_file: bool) -> Issue:
    if ends_file:
        return Issue(
            f"a quote that opens here is not closed ({error}); nothing after it was read",
            "texts in pairs of double quotes",
            'close it; write a quote inside a text as ""',
        )
    return Issue(f"not valid CSV: {error}", "RFC 4180", 'write a quote inside a quoted text as ""')


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_ROW_BYTES:
            raise csv.Error(f"{UNCLOSED[0]} ({MAX_ROW_BYTES})")
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        # A byte that is no UTF-8 becomes a surrogate, which belongs to no text, and is found in its record.
        yield content.decode(errors="surrogateescape")
