"""All rows of a source, in one format, file after file."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from finetune_trainer.data.containers import delimited, jsonlines, jsonlist, parquet
from finetune_trainer.data.containers.base import Container, Header, Record
from finetune_trainer.data.detect import (
    HEAD_BYTES,
    SAMPLE_ROWS,
    ContainerName,
    Detection,
    container_of,
)
from finetune_trainer.data.files import Damaged, SourceFile, stem
from finetune_trainer.data.formats.alpaca import Alpaca
from finetune_trainer.data.formats.base import SPLIT_NAMES, Format, RawRow
from finetune_trainer.data.formats.chat import Chats
from finetune_trainer.data.formats.doccano import Doccano
from finetune_trainer.data.formats.kto import KTO
from finetune_trainer.data.formats.labelstudio import LabelStudio
from finetune_trainer.data.formats.pairs import Pairs
from finetune_trainer.data.formats.preference import Preference
from finetune_trainer.data.formats.sharegpt import ShareGPT
from finetune_trainer.data.options import JUDGED_SINCE, DataFormat, Recipe
from finetune_trainer.data.problems import Code, Invalid, Issue, Place
from finetune_trainer.data.unpacking import CHUNK_BYTES
from finetune_trainer.rows import SplitName

CONTAINERS: Final[Mapping[ContainerName, Container]] = {
    "JSON Lines": jsonlines.read,
    "JSON list": jsonlist.read,
    "CSV": delimited.read_csv,
    "TSV": delimited.read_tsv,
    "Parquet": parquet.read,
}
FORMATS: Final[Mapping[DataFormat, type[Format]]] = {
    "PromptCompletion": Pairs,
    "CSV": Pairs,
    "TSV": Pairs,
    "Parquet": Pairs,
    "ChatMessages": Chats,
    "Alpaca": Alpaca,
    "ShareGPT": ShareGPT,
    "LabelStudio": LabelStudio,
    "Doccano": Doccano,
    "Preference": Preference,
    "KTO": KTO,
}
SAMPLE_BYTES: Final = 4 * CHUNK_BYTES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A valid row, and where it is."""

    place: Place
    raw: RawRow


class Reading:
    """Reads a source once; `format` is what was forced, or found in the first file that tells.

    Raises ValueError for a template that is none, and what SourceFile raises but Damaged.
    """

    def __init__(self, files: Sequence[SourceFile], recipe: Recipe) -> None:
        self.format: DataFormat | None = None if recipe.format == "Parquet" else recipe.format
        self._files = files
        self._recipe = recipe
        self._detection = Detection(recipe.names, recipe.division.rule_version)
        self._is_forced = recipe.format not in (None, "Parquet")
        self._records: Format | None = None
        self.unread_labels = 0
        """Rows whose label judges an answer that an older rule learns all the same."""

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields that were seen so far and are not used."""
        return () if self._records is None else tuple(self._records.unused)

    @property
    def ignored_names(self) -> tuple[str, ...]:
        """What the recipe names, and the format has no use for."""
        return () if self._records is None else self._records.ignored_names

    def __iter__(self) -> Iterator[PlacedRow | Invalid]:
        for file in self._files:
            yield from self._file(file, file.name if len(self._files) > 1 else None)
            # What was not read counts for the source's digest all the same.
            file.finish()

    def _file(self, file: SourceFile, name: str | None) -> Iterator[PlacedRow | Invalid]:
        split = None
        if self._recipe.division.from_files:
            split = split_of(file.name)
            if split is None:
                yield Invalid(Place(name), (_nameless(file.name),), ends_file=True)
                return
        row = None
        try:
            for item in self._rows(file, name):
                row = item.place.record or row
                if split is not None and isinstance(item, PlacedRow):
                    yield PlacedRow(item.place, replace(item.raw, split=split))
                else:
                    yield item
        except Damaged as damage:
            used = "nothing of it was used" if row is None else f"nothing after row {row} was used"
            issue = Issue(
                Code.FILE_DAMAGED,
                f"the file cannot be {damage.doing} to its end: {damage}; {used}",
                "a whole file",
                damage.fix,
            )
            yield Invalid(Place(name), (issue,), ends_file=True)

    def _rows(self, file: SourceFile, name: str | None) -> Iterator[PlacedRow | Invalid]:
        container = container_of(file.head(HEAD_BYTES), self._recipe.format)
        if isinstance(container, Issue):
            yield Invalid(Place(name), (container,), ends_file=True)
            return
        items = CONTAINERS[container](file, name)
        sample = list(_sample(items, file))
        form = self._settle_format(sample, container)
        if isinstance(form, Issue):
            yield Invalid(Place(name), (form,), ends_file=True)
            return
        for item in chain(sample, items):
            if isinstance(item, Header):
                if issues := form.header_issues(item.columns):
                    yield Invalid(Place(name), issues, ends_file=True)
                    return
            elif isinstance(item, Record):
                raw = self._verdict(item) or form.read(item.fields)
                yield PlacedRow(item.place, raw) if isinstance(raw, RawRow) else Invalid(item.place, raw)
            else:
                yield item

    def _verdict(self, record: Record) -> tuple[Issue] | None:
        """Why a row is not read as what most others are; rows after the first ones have labels too."""
        if self._is_forced or self.format is None:
            return None
        issue = self._detection.verdict_issue(self.format, record.fields)
        if issue is None:
            return None
        if self._detection.rule < JUDGED_SINCE:
            self.unread_labels += 1
            return None
        return (issue,)

    def _settle_format(
        self, sample: Sequence[Header | Record | Invalid], container: ContainerName
    ) -> Format | Issue:
        """What the records mean, or why this file cannot be read together with the files before it."""
        records = [item.fields for item in sample if isinstance(item, Record)]
        # A table without records is told by its columns.
        records = records or [dict.fromkeys(item.columns) for item in sample if isinstance(item, Header)]
        if self.format is None or (records and not self._is_forced):
            found = self._detection.format_of(records, container)
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
                    "keep one format a source",
                )
        if self._records is None:
            self._records = FORMATS[self.format](self._recipe)
        return self._records


def split_of(name: str) -> SplitName | None:
    """The split that a file's name begins with: train.jsonl, train-00000-of-00002.parquet, dev_1.csv.gz."""
    return SPLIT_NAMES.get(re.split(r"[-_.]", stem(name), maxsplit=1)[0].lower())


def _nameless(name: str) -> Issue:
    return Issue(
        Code.SPLIT,
        f"the file's name, {name}, says no split",
        "a name that begins with train, validation or test",
        "rename the file, or remove split.fromFiles",
    )


def _sample(
    items: Iterator[Header | Record | Invalid], file: SourceFile
) -> Iterator[Header | Record | Invalid]:
    """The first items of a file: so many that its format can be told, and so few that they fit in memory."""
    for count, item in enumerate(items, start=1):
        yield item
        if count >= SAMPLE_ROWS or (isinstance(item, Record) and file.bytes_read >= SAMPLE_BYTES):
            return
