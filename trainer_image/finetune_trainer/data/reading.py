# SPDX-License-Identifier: Apache-2.0
"""Reads all rows of a source in one format, file by file.

The first bytes of a file determine its container.
"""

import codecs
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from finetune_trainer.contract.vocabulary import DataFormat, SplitName
from finetune_trainer.data.containers import delimited, excel, json_records, parquet
from finetune_trainer.data.containers.base import (
    TABLES,
    Container,
    ContainerName,
    Fields,
    Header,
    Line,
    RawRecord,
    table_of,
)
from finetune_trainer.data.containers.json_records import ONE_OBJECT
from finetune_trainer.data.files import (
    CHUNK_BYTES,
    GZIP,
    ZSTD,
    FileDamaged,
    FileUnreadable,
    SourceFile,
    TooLarge,
    stem,
)
from finetune_trainer.data.formats.base import SPLIT_NAMES, Format, RawRow
from finetune_trainer.data.formats.field_meanings import meaning_of
from finetune_trainer.data.formats.registry import FORMATS, SAMPLE_ROWS, FormatDetector
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_problems import Code, InvalidRecord, Issue, RowPosition, printable

HEAD_BYTES: Final = 1 << 16
"""Number of first bytes by which the container of a file is detected."""

UNSUPPORTED_KINDS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32 text", "save it as UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16 text", "save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16 text", "save it as UTF-8"),
    (GZIP, "compressed by gzip twice", "decompress it once (gunzip)"),
    (ZSTD, "compressed by zstd twice", "decompress it once (unzstd)"),
    (b"\xfd7zXZ\x00", "compressed by xz", "decompress it (unxz), or compress it with gzip or zstd"),
    (b"BZh", "compressed by bzip2", "decompress it (bunzip2), or compress it with gzip or zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it (7z x)"),
    (b"PK\x05\x06", "an empty ZIP archive", "name a file of rows"),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an old Excel file (.xls) or one with a password",
        "save it as .xlsx without a password, or export it as CSV",
    ),
    (b"%PDF", "PDF", "export the rows as JSON Lines or CSV"),
    (b"<!DOCTYPE html", "a web page", "download the data itself; a sign-in page looks like this too"),
    (b"<html", "a web page", "download the data itself; a sign-in page looks like this too"),
)
UTF16_SHARE: Final = 0.7
TAR: Final = (257, b"ustar")
"""Offset and magic bytes of a tar archive."""
EXPECTED: Final = "JSON Lines or CSV"


def container_of(head: bytes, forced: DataFormat | None) -> ContainerName | Issue:
    """The container of a file that begins with these bytes, or why it cannot be read."""
    if head.startswith(excel.MAGIC):
        return _excel(forced)
    if issue := _unsupported_kind(head, forced):
        return issue
    content = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not content:
        return Issue(Code.FILE_EMPTY, "the file is empty", "at least one row", "add rows")
    if forced in TABLES:
        return forced
    if head.startswith(b"PAR1"):
        return "Parquet"
    if content.startswith(b"["):
        return "JSON list"
    first_line = content.split(b"\n", 1)[0].strip()
    if first_line == b"{":
        return Issue(
            Code.FILE_UNKNOWN,
            "the file has JSON objects that span several lines",
            ONE_OBJECT,
            "convert it: jq -c . FILE > rows.jsonl",
        )
    if content.startswith(b"{"):
        return "JSON Lines"
    commas, tabs = first_line.count(b","), first_line.count(b"\t")
    if commas or tabs:
        return "TSV" if tabs > commas else "CSV"
    if first_line.count(b";") or first_line.count(b"|"):
        # The check of the header then says what to do.
        return "CSV"
    if forced is not None:
        # Each line then gets its own message.
        return "JSON Lines"
    # The message does not quote the file, because its content is unknown.
    return Issue(
        Code.FILE_UNKNOWN,
        "the file has one column: its first line has no comma, semicolon or tab, and is not a JSON object",
        f"{EXPECTED}, with a prompt and its answer in each row",
        "add a column with the answers",
    )


def _excel(forced: DataFormat | None) -> ContainerName | Issue:
    if forced is None or FORMATS[forced].table in (None, table_of("Excel")):
        return "Excel"
    return Issue(
        Code.FILE_UNKNOWN, "the file is an Excel workbook", f"{forced}, as format says", "leave format out"
    )


def _unsupported_kind(head: bytes, forced: DataFormat | None) -> Issue | None:
    for magic, name, fix in UNSUPPORTED_KINDS:
        if head.startswith(magic):
            return Issue(Code.FILE_UNKNOWN, f"the file is {name}", f"{EXPECTED} in UTF-8", fix)
    if not head.startswith(b"PAR1") and (found := _unsupported_content(head)):
        return Issue(Code.FILE_UNKNOWN, f"the file {found[0]}", f"{EXPECTED} in UTF-8", found[1])
    if forced in ("CSV", "TSV") and head.startswith(b"PAR1"):
        return Issue(
            Code.FILE_UNKNOWN, "the file is Parquet", f"{forced}, as format says", "leave format out"
        )
    return None


def _unsupported_content(head: bytes) -> tuple[str, str] | None:
    """The kind of an unsupported file without magic bytes at its start, and what to do about it."""
    start, word = TAR
    if head[start:].startswith(word):
        return "is a tar archive", "unpack it (tar -xf) and name the file in it"
    first, second = head[0::2], head[1::2]
    # In UTF-16 without a byte order mark, nearly every other byte of Latin text is zero.
    zeros = sorted(half.count(0) / max(len(half), 1) for half in (first, second))
    if zeros[0] < 1 - UTF16_SHARE and zeros[1] > UTF16_SHARE:
        return "is UTF-16 text without a byte order mark", "save it as UTF-8"
    lines = head.rstrip(b"\r")
    if b"\r" in lines and b"\n" not in head and not head.lstrip().startswith(b"["):
        return "has lines that end with CR only", "save it with LF or CRLF: tr '\\r' '\\n' < FILE > rows"
    return None


CONTAINERS: Final[Mapping[ContainerName, Container]] = {
    "JSON Lines": json_records.read_json_lines,
    "JSON list": json_records.read_json_list,
    "CSV": delimited.read_csv,
    "TSV": delimited.read_tsv,
    "Parquet": parquet.read,
    "Excel": excel.read,
}
MAX_SAMPLE_BYTES: Final = 4 * CHUNK_BYTES
BATCH_BYTES: Final = 2 * CHUNK_BYTES
"""Approximate decompressed size of a batch; files are read in chunks."""
BATCH_ROWS: Final = 1000
MAX_UNUSED: Final = 200
"""Maximum number of names of unused fields to keep: each row could have a new one."""
MAX_UNUSED_CHARACTERS: Final = 200

logger = logging.getLogger(__name__)


@dataclass(slots=True)  # not frozen: creating it would take longer than reading it
class LocatedRow:
    """A valid row and its position."""

    position: RowPosition
    raw: RawRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBatch:
    """Consecutive records of one file, and what `BatchReader` needs to read them."""

    source: int = 0
    """Number of the source, from 0."""
    file: int
    """Number of the file among those of all sources, from 0."""
    name: str | None
    """Name of the file for row positions."""
    split: SplitName | None
    """Split of all rows: that of the file's name with split.fromFiles, or train in a source that is only
    trained on."""
    format: DataFormat | None
    """None if no record is to be read."""
    items: list[RawRecord | Line | InvalidRecord]
    bytes_read: int
    """Bytes read from all files on disk when the batch was complete."""


class SourceReader:
    """Reads one source once. `format` is the forced format, or the one of the first file that shows it.

    Raises ValueError for an invalid template, and what SourceFile raises except FileDamaged.
    """

    def __init__(self, files: Sequence[SourceFile], recipe: Recipe) -> None:
        self.format = _forced(recipe)
        self._files = files
        self._recipe = recipe
        self._detector = FormatDetector(recipe)
        self._is_forced = _forced(recipe) is not None
        self._form: Format | None = None

    @property
    def ignored_names(self) -> tuple[str, ...]:
        """Names in the recipe that the format does not use."""
        return () if self._form is None else self._form.ignored_names

    def __iter__(self) -> Iterator[RowBatch]:
        """All records in order. Records before an error are yielded before it is raised."""
        for number, file in enumerate(self._files):
            yield from self._batches(number, file)
            # The source's digest also covers the rest of the file.
            file.finish()

    def _batches(self, number: int, file: SourceFile) -> Iterator[RowBatch]:
        name = file.name if len(self._files) > 1 else None
        split = split_of(file.name) if self._recipe.splits_by_files else None
        if self._recipe.splits == "TrainOnly":
            split = "train"
        items: list[RawRecord | Line | InvalidRecord] = []
        begin = file.bytes_unpacked

        def batch() -> RowBatch:
            read = sum(file.bytes_read for file in self._files)
            return RowBatch(
                file=number, name=name, split=split, format=self.format, items=items, bytes_read=read
            )

        try:
            for item in self._items(file, name):
                items.append(item)
                if len(items) >= BATCH_ROWS or file.bytes_unpacked - begin >= BATCH_BYTES:
                    yield batch()
                    items, begin = [], file.bytes_unpacked
        except Exception:
            yield batch()
            raise
        yield batch()

    def _items(self, file: SourceFile, name: str | None) -> Iterator[RawRecord | Line | InvalidRecord]:
        if self._recipe.splits_by_files and split_of(file.name) is None:
            yield InvalidRecord(RowPosition(name), (_no_split_issue(file.name),), ends_file=True)
            return
        row = None
        try:
            for item in self._records(file, name):
                row = _record_of(item) or row
                yield item
        except FileDamaged as damage:
            used = "none of its rows was used" if row is None else f"no row after row {row} was used"
            issue = Issue(
                Code.FILE_DAMAGED,
                f"the file cannot be {damage.operation} to its end: {damage}; {used}",
                "a complete file",
                damage.fix,
            )
            yield InvalidRecord(RowPosition(name), (issue,), ends_file=True)

    def _records(self, file: SourceFile, name: str | None) -> Iterator[RawRecord | Line | InvalidRecord]:
        container = container_of(file.head(HEAD_BYTES), self._recipe.format)
        if isinstance(container, Issue):
            yield InvalidRecord(RowPosition(name), (container,), ends_file=True)
            return
        items = CONTAINERS[container](file, name)
        sample, decoded = _sample(items, file)
        form = self._resolve_format(decoded, container)
        if isinstance(form, Issue):
            yield InvalidRecord(RowPosition(name), (form,), ends_file=True)
            return
        for item in chain(sample, items):
            if not isinstance(item, Header):
                yield item
            elif issues := form.header_issues(item.columns):
                yield InvalidRecord(RowPosition(name), issues, ends_file=True)
                return

    def _resolve_format(
        self, sample: Sequence[Header | RawRecord | InvalidRecord], container: ContainerName
    ) -> Format | Issue:
        """The format of the records, or why this file cannot be read together with the files before it."""
        records = [item.fields for item in sample if isinstance(item, RawRecord)]
        # The format of a table without records shows in its columns.
        records = records or [dict.fromkeys(item.columns) for item in sample if isinstance(item, Header)]
        if self.format is None or (records and not self._is_forced):
            found = self._detector.format_of(records, container)
            if isinstance(found, Issue):
                return found
            if self.format is None:
                self.format = found
                logger.info("format: %s", found)
            if found != self.format:
                return Issue(
                    Code.FORMATS_MIXED,
                    f"the file is {found}",
                    f"{self.format}, as the first file",
                    "use one format per source",
                )
        if self._form is None:
            self._form = FORMATS[self.format](self._recipe)
        return self._form


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFiles:
    """Files to read together, and how."""

    files: Sequence[SourceFile]
    recipe: Recipe
    name: str | None = None
    """Name for positions and reports, such as a URI."""


class SourcesReader:
    """Reads several sources once, one after the other.

    What it raises while it reads a source has that source's number as the attribute `source`, if it is a
    FileUnreadable or TooLarge.
    """

    def __init__(self, sources: Sequence[SourceFiles]) -> None:
        """Raises ValueError for an invalid template."""
        self._sources = sources
        self.readers = [SourceReader(source.files, source.recipe) for source in sources]

    def __iter__(self) -> Iterator[RowBatch]:
        """All batches in order, as `SourceReader` yields them."""
        files = before = 0
        for number, (source, reader) in enumerate(zip(self._sources, self.readers, strict=True)):
            try:
                for batch in reader:
                    yield replace(
                        batch, source=number, file=files + batch.file, bytes_read=before + batch.bytes_read
                    )
            except (FileUnreadable, TooLarge) as error:
                error.source = number
                raise
            files += len(source.files)
            before += sum(file.bytes_read for file in source.files)


class BatchReader:
    """Reads the records of batches independently of each other."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._is_forced = _forced(recipe) is not None
        self._decoder = json_records.LineDecoder()
        self.form: Format | None = None
        """Format of the last batch, with its unused fields; None if the batch had no record to read."""

    def read(self, batch: RowBatch) -> Iterator[LocatedRow | InvalidRecord]:
        """Each row, or its issues."""
        if batch.format is None:
            self.form = None
            yield from (item for item in batch.items if isinstance(item, InvalidRecord))
            return
        form = self.form = FORMATS[batch.format](self._recipe)
        for item in batch.items:
            record = self._decoder.decode(item, batch.name) if isinstance(item, tuple) else item
            if isinstance(record, InvalidRecord):
                yield record
                continue
            raw = self._rating_issue(record, form) or form.read(record.fields)
            if not isinstance(raw, RawRow):
                yield InvalidRecord(record.position, raw)
            else:
                yield LocatedRow(
                    record.position, raw if batch.split is None else replace(raw, split=batch.split)
                )

    def _rating_issue(self, record: RawRecord, form: Format) -> tuple[Issue] | None:
        """Why a row is not read in the detected format; ratings can occur after the sampled rows too."""
        if self._is_forced:
            return None
        issue = form.rating_issue(record.fields)
        return None if issue is None else (issue,)


class UnusedFields:
    """Names of unused fields of the rows, at most MAX_UNUSED, in the order of the rows.

    Names with a meaning for training are always among them.
    """

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._known: set[str] = set()
        self._noted = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names in all batches so far."""
        return tuple(self._names)

    def add(self, unused: Iterable[str], known: Iterable[str]) -> None:
        """Add the names of the next batch; `known` are the fields that it uses."""
        for name in unused:
            is_kept = self._noted < MAX_UNUSED or meaning_of(name) is not None
            if is_kept and name not in self._known:
                self._noted += 1
                self._known.add(name)
                self._names[printable(name[:MAX_UNUSED_CHARACTERS])] = None
        self._known.update(known)


def _forced(recipe: Recipe) -> DataFormat | None:
    """The recipe's format, if it leaves nothing to detect."""
    return recipe.format if recipe.format is not None and FORMATS[recipe.format].is_definite else None


def _record_of(item: RawRecord | Line | InvalidRecord) -> int | None:
    return item[0] if isinstance(item, tuple) else item.position.record


def split_of(name: str) -> SplitName | None:
    """The split that a file's name begins with: train.jsonl, train-00000-of-00002.parquet, dev_1.csv.gz."""
    return SPLIT_NAMES.get(re.split(r"[-_.]", stem(name), maxsplit=1)[0].lower())


def _no_split_issue(name: str) -> Issue:
    return Issue(
        Code.SPLIT,
        f"the file name {name} has no split",
        "a name that begins with train, validation or test",
        "rename the file, or remove split.fromFiles",
    )


@dataclass(frozen=True, slots=True)
class FileSample:
    """The first records of a file."""

    container: ContainerName
    columns: tuple[str, ...]
    """The columns of a table, or the fields of the records, in the order of their occurrence."""
    records: Sequence[Fields]


def read_sample(file: SourceFile, form: DataFormat | None) -> FileSample | None:
    """The first records of a file that was not read before; None if it is not a file of records.

    `form` is the forced format. Raises what SourceFile raises.
    """
    container = container_of(file.head(HEAD_BYTES), form)
    if isinstance(container, Issue):
        return None
    _, decoded = _sample(CONTAINERS[container](file, None), file)
    records = [item.fields for item in decoded if isinstance(item, RawRecord)]
    header = next((item.columns for item in decoded if isinstance(item, Header)), None)
    columns = header or tuple(dict.fromkeys(name for record in records for name in record))
    return FileSample(container, columns, records)


def _sample(
    items: Iterator[Header | RawRecord | Line | InvalidRecord], file: SourceFile
) -> tuple[list[Header | RawRecord | Line | InvalidRecord], list[Header | RawRecord | InvalidRecord]]:
    """The first items of a file, raw and decoded: enough to detect its format, and few enough for memory."""
    decoder = json_records.LineDecoder()
    begin = file.bytes_unpacked
    sample: list[Header | RawRecord | Line | InvalidRecord] = []
    decoded: list[Header | RawRecord | InvalidRecord] = []
    for item in items:
        sample.append(item)
        decoded.append(decoder.decode(item, None) if isinstance(item, tuple) else item)
        is_full = isinstance(decoded[-1], RawRecord) and file.bytes_unpacked - begin >= MAX_SAMPLE_BYTES
        if len(sample) >= SAMPLE_ROWS or is_full:
            break
    return sample, decoded
