# SPDX-License-Identifier: Apache-2.0
"""Detection of a file's container by its first bytes."""

import codecs
from typing import Final

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.containers.base import TABLES, ContainerName
from finetune_trainer.data.containers.jsonlines import ONE_OBJECT
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.unpacking import GZIP, ZSTD

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
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "export it as CSV"),
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
        "the first line is neither a JSON object nor a header with commas or tabs",
        EXPECTED,
        "convert it, or set format",
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
