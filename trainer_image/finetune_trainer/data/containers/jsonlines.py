# SPDX-License-Identifier: Apache-2.0
"""JSON Lines: one object per line, in UTF-8."""

import codecs
import json
from collections.abc import Iterator
from typing import Final

from finetune_trainer.data.containers.base import Fields, Line, RawRecord
from finetune_trainer.data.containers.decoding import NESTED_TOO_DEEP, Decoder, quick_fields, syntax_issue
from finetune_trainer.data.files import MAX_ROW_BYTES, SourceFile
from finetune_trainer.data.rowproblems import Code, InvalidRecord, Issue, RowPosition

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
