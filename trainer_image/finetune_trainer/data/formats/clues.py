"""What formats are recognised by: a record's fields, the names in the recipe, the container."""

from copy import copy
from enum import IntEnum
from typing import Any, Self

from finetune_trainer.contract.vocabulary import RULE_VERSION
from finetune_trainer.data.containers.base import ContainerName, Fields, TableName, table_of
from finetune_trainer.data.formats.answerratings import AnswerRatings
from finetune_trainer.data.options import FieldNames
from finetune_trainer.data.prompttemplate import PromptTemplate


class Match(IntEnum):
    """How strongly a record suggests a format. The highest wins, then the order of the registry."""

    FIELDS = 1
    """Its fields have the usual names."""
    SHAPE = 2
    """Its fields have names and types that no other format has."""
    NAMED = 3
    """It has the fields that the recipe names."""
    EXPORT = 4
    """A tool wrote it. Its fields say so whatever the recipe names."""


class Clues:
    """The field names to look for in one source: those that the recipe names, else the usual ones."""

    def __init__(self, names: FieldNames, rule: int = RULE_VERSION) -> None:
        """Raises ValueError for an invalid template."""
        self.names = names
        self.rule = rule
        self.ratings = AnswerRatings(names)
        self.prompt = (
            PromptTemplate.parse(names.template).columns if names.template else (names.prompt or "prompt",)
        )
        self.completion = names.completion or "completion"
        self.label = names.label or "label"
        self.messages = names.messages or "messages"
        self.table: TableName | None = None
        """The container of the records where it is a table; None where it is JSON."""
        self.answers = {names.chosen or "chosen", names.rejected or "rejected"}

    def within(self, container: ContainerName) -> Self:
        """The same clues for records of a container."""
        clues = copy(self)
        clues.table = table_of(container)
        return clues

    def has_prompt(self, record: Fields) -> bool:
        """Whether all fields of the prompt are there."""
        return record.keys() >= set(self.prompt)

    def has_completion(self, record: Fields) -> bool:
        """Whether the completion is there."""
        return self.completion in record

    def has_plain_completion(self, record: Fields) -> bool:
        """Whether the completion is there, and neither a list nor an object."""
        value: Any = record.get(self.completion)
        return self.completion in record and not isinstance(value, list | dict)
