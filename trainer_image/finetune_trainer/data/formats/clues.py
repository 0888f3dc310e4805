# SPDX-License-Identifier: Apache-2.0
"""Clues for recognizing formats: the fields of a record, the names in the recipe, the container."""

from copy import copy
from enum import IntEnum
from typing import Any, Self

from finetune_trainer.data.containers.base import ContainerName, Fields, TableName, table_of
from finetune_trainer.data.formats.answerratings import AnswerRatings
from finetune_trainer.data.options import FieldNames
from finetune_trainer.data.prompttemplate import PromptTemplate


class Match(IntEnum):
    """How strongly a record matches a format. The highest wins, then the order of the registry."""

    FIELDS = 1
    """Its fields have the usual names."""
    SHAPE = 2
    """Its fields have names and types that no other format has."""
    NAMED = 3
    """It has the fields that the recipe names."""
    EXPORT = 4
    """It is the export of a tool, as its fields show, whatever the recipe names."""


class Clues:
    """Field names to expect in one source: those in the recipe, else the usual ones."""

    def __init__(self, names: FieldNames) -> None:
        """Raises ValueError for an invalid template."""
        self.names = names
        self.ratings = AnswerRatings(names)
        self.prompt = (
            PromptTemplate.parse(names.template).columns if names.template else (names.prompt or "prompt",)
        )
        self.completion = names.completion or "completion"
        self.label = names.label or "label"
        self.messages = names.messages or "messages"
        self.table: TableName | None = None
        """Container of the records if it is a table; None if it is JSON."""
        self.answers = {names.chosen or "chosen", names.rejected or "rejected"}

    def within(self, container: ContainerName) -> Self:
        """The same clues for the records of a container."""
        clues = copy(self)
        clues.table = table_of(container)
        return clues

    def has_prompt(self, record: Fields) -> bool:
        """Whether the record has all fields of the prompt."""
        return record.keys() >= set(self.prompt)

    def has_completion(self, record: Fields) -> bool:
        """Whether the record has the completion."""
        return self.completion in record

    def has_plain_completion(self, record: Fields) -> bool:
        """Whether the record has the completion, and it is neither a list nor an object."""
        value: Any = record.get(self.completion)
        return self.completion in record and not isinstance(value, list | dict)
