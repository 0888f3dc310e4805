"""JSON Lines: one object a line, in UTF-8."""

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from finetune_trainer.prepare.problems import Invalid, Issue, Place
from finetune_trainer.prepare.records import RawRow, Record, Records
from finetune_trainer.prepare.source import MAX_ROW_BYTES
from finetune_trainer.prepare.text import listed, type_name

ONE_OBJECT: Final = "one JSON object on each line"


def read(lines: Iterable[bytes], records: Records, file: str | None) -> Iterator[RawRow | Invalid]:
    """Each line as a row or as what is wrong with it; lines of white space only are no rows."""
    for number, line in enumerate(lines, start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not content.strip():
            continue
        record = parse(content)
        result = (record,) if isinstance(record, Issue) else records.read(record)
        yield result if isinstance(result, RawRow) else Invalid(Place(file, number, number), result)


def parse(line: bytes) -> Record | Issue:
    """One line's object, or why it has none."""
    if len(line) > MAX_ROW_BYTES:
        return Issue(f"longer than {MAX_ROW_BYTES >> 20} MiB", ONE_OBJECT, "check the line ends")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Issue(
            f"byte {error.start + 1} (0x{line[error.start]:02X}) is not UTF-8",
            "UTF-8",
            "save the file as UTF-8",
        )
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return Issue(f"not valid JSON at column {error.colno}: {error.msg}", ONE_OBJECT, "correct the line")
    except RecursionError:
        return Issue("nested too deep", ONE_OBJECT, "correct the line")
    except ValueError as error:
        return Issue(f"not valid JSON: {error}", ONE_OBJECT, "correct the line")
    if not isinstance(value, dict):
        return Issue(f"is {type_name(value)}", ONE_OBJECT, "put the fields in { }")
    return value


def _object(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {listed([twice])} is there twice")
    return record
