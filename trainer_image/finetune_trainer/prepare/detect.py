"""Which format a file is in, by its content; and files that are none of ours, by name."""

import codecs
from typing import Final, Literal

from finetune_trainer.prepare import jsonlines
from finetune_trainer.prepare.problems import Issue
from finetune_trainer.prepare.records import FieldNames
from finetune_trainer.prepare.text import listed

DataFormat = Literal["PromptCompletion", "ChatMessages", "CSV"]

HEAD_BYTES: Final = 1 << 20
"""How much of a file is looked at."""
SAMPLE_ROWS: Final = 100

OTHER_KINDS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32 text", "save it as UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16 text", "save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16 text", "save it as UTF-8"),
    (b"\x1f\x8b", "compressed by gzip", "decompress it first (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it first (unzstd)"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "export it as CSV"),
    (b"PAR1", "Parquet", "export it as JSON Lines or CSV"),
    (b"%PDF", "PDF", "export the rows as JSON Lines or CSV"),
)
EXPECTED: Final = "JSON Lines or CSV"


def other_kind(head: bytes) -> Issue | None:
    """Why a file that begins with these bytes cannot be read in any of our formats."""
    for magic, name, fix in OTHER_KINDS:
        if head.startswith(magic):
            return Issue(f"the file is {name}", f"{EXPECTED} in UTF-8", fix)
    return None


def json_document(head: bytes) -> Issue | None:
    """Why a file that begins with these bytes is JSON, but not JSON Lines."""
    content = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if content.startswith(b"["):
        what, command = "one JSON list", "jq -c '.[]' FILE > rows.jsonl"
    elif content.split(b"\n", 1)[0].strip() == b"{":
        what, command = "JSON objects over several lines each", "jq -c . FILE > rows.jsonl"
    else:
        return None
    return Issue(f"the file is {what}", jsonlines.ONE_OBJECT, f"convert it: {command}")


def detect(head: bytes, names: FieldNames) -> DataFormat | Issue:
    """The format of a file that begins with these bytes, or why it cannot be told.

    An empty file cannot be told. Most of the first rows decide between the JSON forms.
    """
    content = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not content:
        return Issue("the file is empty", "at least one row", "add rows")
    if issue := json_document(head):
        return issue
    if content.startswith(b"{"):
        return _json_form(content, names)
    first_line = content.split(b"\n", 1)[0]
    if b"," in first_line:
        return "CSV"
    shown = first_line[:60].decode(errors="backslashreplace").strip()
    return Issue(
        f"the first line is neither a JSON object nor a header with commas: {shown!r}",
        EXPECTED,
        "convert it, or set format",
    )


def _json_form(content: bytes, names: FieldNames) -> DataFormat | Issue:
    pairs = chats = 0
    fields: list[str] = []
    for line in content.splitlines()[:SAMPLE_ROWS]:
        record = jsonlines.parse(line)
        if isinstance(record, Issue):
            continue
        chats += names.messages in record
        pairs += names.messages not in record and bool({names.prompt, names.completion} & record.keys())
        fields = fields or list(record)
    if pairs or chats:
        return "ChatMessages" if chats > pairs else "PromptCompletion"
    if fields:
        return Issue(
            f"the rows have the fields {listed(fields)}",
            f'"{names.prompt}" and "{names.completion}", or "{names.messages}"',
            "map the fields in columns",
        )
    # Nothing could be read; as rows, each line is told what is wrong with it.
    return "PromptCompletion"
