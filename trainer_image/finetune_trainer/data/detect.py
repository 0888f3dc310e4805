"""What a file is, by its content: how its records lie in it, and what they mean."""

import codecs
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.containers.jsonlines import ONE_OBJECT
from finetune_trainer.data.formats.judged import Verdicts
from finetune_trainer.data.formats.kto import label_of
from finetune_trainer.data.formats.labelstudio import is_task
from finetune_trainer.data.formats.preference import is_openai
from finetune_trainer.data.options import JUDGED_SINCE, MESSAGES_SINCE, NEWEST_RULE, DataFormat, FieldNames
from finetune_trainer.data.problems import Code, Issue
from finetune_trainer.data.template import PromptTemplate
from finetune_trainer.data.text import field_names, listed
from finetune_trainer.data.unpacking import GZIP, ZSTD

ContainerName = Literal["JSON Lines", "JSON list", "CSV", "TSV", "Parquet"]
TABLES: Final = ("CSV", "TSV", "Parquet")

HEAD_BYTES: Final = 1 << 16
"""How much of a file is looked at to tell how its records lie in it."""
SAMPLE_ROWS: Final = 100
"""How many records are looked at to tell what they mean."""

OTHER_KINDS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32 text", "save it as UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16 text", "save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16 text", "save it as UTF-8"),
    (GZIP, "compressed by gzip twice", "decompress it once (gunzip)"),
    (ZSTD, "compressed by zstd twice", "decompress it once (unzstd)"),
    (b"\xfd7zXZ\x00", "compressed by xz", "decompress it (unxz), or pack it with gzip or zstd"),
    (b"BZh", "compressed by bzip2", "decompress it (bunzip2), or pack it with gzip or zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it (7z x)"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "export it as CSV"),
    (b"%PDF", "PDF", "export the rows as JSON Lines or CSV"),
    (b"<!DOCTYPE html", "a web page", "download the rows themselves; a page to sign in looks like this too"),
    (b"<html", "a web page", "download the rows themselves; a page to sign in looks like this too"),
)
UTF16_SHARE: Final = 0.7
TAR: Final = (257, b"ustar")
"""Where an archive says what it is."""
EXPECTED: Final = "JSON Lines or CSV"
LABEL_STUDIO_COLUMNS: Final = ({"annotation_id", "lead_time"}, {"annotator", "lead_time"})
JUDGED_BY_LABEL: Final[frozenset[DataFormat]] = frozenset(
    {"PromptCompletion", "CSV", "TSV", "Parquet", "ChatMessages", "Alpaca", "ShareGPT"}
)
"""Formats that learn every answer, and so must have no label that judges one."""
DOCCANO_COLUMNS: Final = {"id", "text", "label"}


def container_of(head: bytes, forced: DataFormat | None) -> ContainerName | Issue:
    """How records lie in a file that begins with these bytes, or why it cannot be read."""
    if issue := _other_kind(head, forced):
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
            "the file is JSON objects over several lines each",
            ONE_OBJECT,
            "convert it: jq -c . FILE > rows.jsonl",
        )
    if content.startswith(b"{"):
        return "JSON Lines"
    commas, tabs = first_line.count(b","), first_line.count(b"\t")
    if commas or tabs:
        return "TSV" if tabs > commas else "CSV"
    if first_line.count(b";") or first_line.count(b"|"):
        # What to do about it is told with the header.
        return "CSV"
    if forced is not None:
        # As rows, each line is told what is wrong with it.
        return "JSON Lines"
    # Nothing of it is quoted: nobody knows what it is.
    return Issue(
        Code.FILE_UNKNOWN,
        "the first line is neither a JSON object nor a header with commas or tabs",
        EXPECTED,
        "convert it, or set format",
    )


def _other_kind(head: bytes, forced: DataFormat | None) -> Issue | None:
    for magic, name, fix in OTHER_KINDS:
        if head.startswith(magic):
            return Issue(Code.FILE_UNKNOWN, f"the file is {name}", f"{EXPECTED} in UTF-8", fix)
    if not head.startswith(b"PAR1") and (found := _by_its_bytes(head)):
        return Issue(Code.FILE_UNKNOWN, f"the file {found[0]}", f"{EXPECTED} in UTF-8", found[1])
    if forced in ("CSV", "TSV") and head.startswith(b"PAR1"):
        return Issue(
            Code.FILE_UNKNOWN, "the file is Parquet", f"{forced}, as format says", "leave format out"
        )
    return None


def _by_its_bytes(head: bytes) -> tuple[str, str] | None:
    """What a file is that says so further on, or nowhere, and what to do about it."""
    start, word = TAR
    if head[start:].startswith(word):
        return "is a tar archive", "unpack it (tar -xf) and name the file in it"
    first, second = head[0::2], head[1::2]
    # Of UTF-16 without a mark nearly every other byte is zero, in languages of Latin letters.
    zeros = sorted(half.count(0) / max(len(half), 1) for half in (first, second))
    if zeros[0] < 1 - UTF16_SHARE and zeros[1] > UTF16_SHARE:
        return "is UTF-16 text without a byte order mark", "save it as UTF-8"
    lines = head.rstrip(b"\r")
    if b"\r" in lines and b"\n" not in head and not head.lstrip().startswith(b"["):
        return "has lines that end with CR only", "save it with LF or CRLF: tr '\\r' '\\n' < FILE > rows"
    return None


class Detection:
    """Tells what records mean, by their fields and by the names that the recipe gives."""

    def __init__(self, names: FieldNames, rule: int = NEWEST_RULE) -> None:
        """Raises ValueError for a template that is none."""
        self.names = names
        self.rule = rule
        self.verdicts = Verdicts(names)
        self.prompt = PromptTemplate.parse(names.template).columns if names.template else (_prompt(names),)
        self.completion = names.completion or "completion"
        self.label = names.label or "label"
        self.messages = names.messages or "messages"
        self.answers = {names.chosen or "chosen", names.rejected or "rejected"}

    def format_of(self, records: Sequence[Fields], container: ContainerName) -> DataFormat | Issue:
        """What most of the records are; pairs are named as their table. Without records, pairs.

        Where a label may judge the answers that would be learned, a person has to say what they are.
        """
        pairs: DataFormat = container if container in TABLES else "PromptCompletion"
        found = [form for record in records if (form := self._form(record, pairs)) is not None]
        if found:
            form = Counter(found).most_common(1)[0][0]
            return self._ambiguity(form, records) or form
        # Of a table the header says what is missing; of what could not be read, each record.
        if container in TABLES or not records:
            return pairs
        return Issue(
            Code.FILE_UNKNOWN,
            f"the rows have {field_names(records[0], 'other fields', 'the fields ')}"
            if records[0]
            else "the rows have no fields",
            f'{listed(self.prompt)} and "{self.completion}", or "{self.messages}"',
            "map the fields in columns, or set format",
        )

    def verdict_issue(self, form: DataFormat, record: Fields) -> Issue | None:
        """Why a record of this format must not be read as one, because a label judges its answer."""
        return self.verdicts.issue(record) if form in JUDGED_BY_LABEL else None

    def _ambiguity(self, form: DataFormat, records: Sequence[Fields]) -> Issue | None:
        if self.rule < JUDGED_SINCE:
            return None
        found = next((issue for record in records if (issue := self.verdict_issue(form, record))), None)
        return None if found is None else replace(found, code=Code.FILE_UNKNOWN)

    def _form(self, record: Fields, pairs: DataFormat) -> DataFormat | None:
        return self._named(record, pairs) or self._usual(record, pairs)

    def _named(self, record: Fields, pairs: DataFormat) -> DataFormat | None:
        """By what the recipe names."""
        names, fields = self.names, record.keys()
        if is_label_studio(record) or (self.rule >= MESSAGES_SINCE and is_task(record)):
            return "LabelStudio"
        if names.messages in fields:
            return "ChatMessages"
        if names.chosen in fields and names.rejected in fields:
            return "Preference"
        if self.completion not in fields or isinstance(record[self.completion], list | dict):
            return None
        if names.label is not None and names.label in fields:
            return "KTO"
        is_prompt_named = names.template is not None or (
            names.prompt is not None and names.completion is not None
        )
        return pairs if is_prompt_named and fields >= set(self.prompt) else None

    def _usual(self, record: Fields, pairs: DataFormat) -> DataFormat | None:
        """By the usual names."""
        fields = record.keys()
        if self.rule >= MESSAGES_SINCE and is_openai(record):
            return "Preference"
        if "conversations" in fields:
            return "ShareGPT"
        if self.messages in fields:
            return "ChatMessages"
        if fields >= self.answers:
            return "Preference"
        has_prompt, has_completion = fields >= set(self.prompt), self.completion in fields
        if has_prompt and has_completion and self._is_judged(record, pairs):
            return "KTO"
        if fields >= {"instruction", "output"} and not (has_prompt and has_completion):
            return "Alpaca"
        if is_doccano(record, pairs):
            return "Doccano"
        if self.rule >= MESSAGES_SINCE and pairs in TABLES and fields >= DOCCANO_COLUMNS:
            # With columns of metadata.
            return pairs if has_prompt or has_completion else "Doccano"
        return pairs if has_prompt or has_completion else None

    def _is_judged(self, record: Fields, pairs: DataFormat) -> bool:
        """Whether the record's label says true or false; in tables there are other ways to write that."""
        if self.rule >= JUDGED_SINCE:
            return self.verdicts.is_kto(record)
        label = record.get(self.label)
        return label_of(label) is not None if pairs in TABLES else isinstance(label, bool)


def is_label_studio(record: Fields) -> bool:
    """Whether a record is a task of Label Studio, or a row of its flat exports."""
    fields = record.keys()
    if isinstance(record.get("annotations"), list) and "data" in fields:
        return True
    return any(fields >= columns for columns in LABEL_STUDIO_COLUMNS)


def is_doccano(record: Fields, pairs: DataFormat) -> bool:
    """Whether a record is one of doccano."""
    fields = record.keys()
    if pairs in TABLES:
        return fields - {"Comments"} == DOCCANO_COLUMNS
    label: Any = record.get("label", record.get("labels"))
    return isinstance(label, list) and fields >= {"id", "text"}


def _prompt(names: FieldNames) -> str:
    return names.prompt or "prompt"
