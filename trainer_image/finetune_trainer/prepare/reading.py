"""All rows of a source, in one format, file after file."""

import logging
from collections import deque
from collections.abc import Iterator

from finetune_trainer.prepare import csvfile, jsonlines
from finetune_trainer.prepare.detect import HEAD_BYTES, DataFormat, detect, json_document, other_kind
from finetune_trainer.prepare.problems import Invalid, Issue, Place
from finetune_trainer.prepare.records import ChatRecords, FieldNames, PairRecords, RawRow
from finetune_trainer.prepare.source import SourceFile

logger = logging.getLogger(__name__)


class Reading:
    """Reads a source once; `format` is what was forced, or found in the first file that tells."""

    def __init__(self, files: list[SourceFile], names: FieldNames, forced: DataFormat | None) -> None:
        self.format: DataFormat | None = forced
        self._files = files
        self._names = names
        self._forced = forced is not None

    def __iter__(self) -> Iterator[RawRow | Invalid]:
        pairs, chats = PairRecords(self._names), ChatRecords(self._names)
        for file in self._files:
            name = file.name if len(self._files) > 1 else None
            lines = file.lines()
            if issue := self._settle_format(file):
                yield Invalid(Place(name), (issue,), ends_file=True)
            elif self.format == "CSV":
                yield from csvfile.read(lines, pairs, name)
            else:
                yield from jsonlines.read(lines, chats if self.format == "ChatMessages" else pairs, name)
            # What was not read counts for the source's digest all the same.
            deque(lines, maxlen=0)

    def _settle_format(self, file: SourceFile) -> Issue | None:
        """Why this file cannot be read together with the files before it."""
        head = file.head(HEAD_BYTES)
        if issue := other_kind(head):
            return issue
        if self._forced:
            return None if self.format == "CSV" else json_document(head)
        found = detect(head, self._names)
        if isinstance(found, Issue):
            return found
        if self.format is None:
            self.format = found
            logger.info("format: %s", found)
        if found != self.format:
            return Issue(
                f"the file is {found}", f"{self.format}, as the first file", "keep one format a source"
            )
        return None
