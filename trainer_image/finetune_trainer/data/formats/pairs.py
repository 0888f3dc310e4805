# SPDX-License-Identifier: Apache-2.0
"""Prompt and completion in two fields or columns: texts, or lists of messages as in TRL."""

from dataclasses import replace
from typing import Any, ClassVar

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, FormatHints, Issues, Match, text
from finetune_trainer.data.formats.conversations import (
    order_issues,
    prepend_system,
    read_messages,
    read_tools,
)
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_problems import Code, Issue
from finetune_trainer.rows import Message, Row


class PromptCompletionFormat(Format):
    """`prompt` (or the filled template) and `completion`; with messages also the `tools` to call."""

    name: ClassVar[DataFormat] = "PromptCompletion"
    title: ClassVar[str] = "prompts with completions"
    refuses_ratings: ClassVar = True
    named = frozenset({"prompt", "completion", "template"})
    used: ClassVar = ("system",)

    @classmethod
    def match(cls, record: Fields, clues: FormatHints, /) -> Match | None:
        """Matches prompt and completion if the recipe names both, else one of them."""
        if cls.table != clues.table:
            return None
        names = clues.names
        is_prompt_named = names.template is not None or (
            names.prompt is not None and names.completion is not None
        )
        if is_prompt_named and clues.has_plain_completion(record) and clues.has_prompt(record):
            return Match.NAMED
        return Match.FIELDS if clues.has_prompt(record) or clues.has_completion(record) else None

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._messages = self.names.messages or "messages"
        self._columns = self.columns()

    def columns(self) -> tuple[str, ...]:
        """The columns of prompt and completion."""
        return (*self.prompt_columns, self.names.completion or "completion")

    def row(self, record: Fields) -> Row | Issues:
        """The pair."""
        if self._messages in record and not any(name in record for name in self.prompt_columns):
            return (mixed_forms_issue(f'a chat row, with "{self._messages}"', "prompt and completion"),)
        completion = self._columns[-1]
        for name in self._columns:
            if isinstance(record.get(name), list):
                return self._conversation(record, self._columns[0], completion)
        found: list[Issue] = []
        prompt = self.prompt(record, found)
        answer = text(record, completion, found)
        system = self.system(record, found)
        if found:
            return tuple(found)
        pair = Row.pair(prompt, answer)
        return Row((Message("system", system), *pair.messages)) if system else pair

    def _conversation(self, record: Fields, prompt: str, completion: str) -> Row | Issues:
        """A conversation; only the turns of the completion are learned."""
        self._known.add("tools")
        found: list[Issue] = []
        tools, names = None, frozenset[str]()
        if record.get("tools") is not None:
            tools, names = read_tools("tools", record["tools"], found)
        if isinstance(record.get(prompt), list):
            before = read_messages(prompt, record[prompt], found, names)
        else:
            before = [Message("user", self.prompt(record, found))]
        answer = _answer(record, completion, names, found)
        system = self.system(record, found)
        if found:
            return tuple(found)

        def path_of(index: int) -> str:
            is_answer = index >= len(before)
            return f"{completion}[{index - len(before)}]" if is_answer else f"{prompt}[{index}]"

        context = [replace(turn, learned=False) if turn.role == "assistant" else turn for turn in before]
        turns = (*context, *answer)
        found = order_issues(completion, turns, path_of=path_of)
        every = prepend_system(system, prompt, list(turns), found)
        return tuple(found) or Row(tuple(every), tools=tools)


class CSVFormat(PromptCompletionFormat):
    """Prompts with completions in a comma-separated table."""

    name: ClassVar = "CSV"
    title: ClassVar = "CSV"
    table: ClassVar = "CSV"


class TSVFormat(PromptCompletionFormat):
    """Prompts with completions in a tab-separated table."""

    name: ClassVar = "TSV"
    title: ClassVar = "TSV"
    table: ClassVar = "TSV"


class ParquetFormat(PromptCompletionFormat):
    """Prompts with completions in a Parquet table, which can also hold any other format."""

    name: ClassVar = "Parquet"
    title: ClassVar = "Parquet"
    table: ClassVar = "Parquet"
    is_definite: ClassVar = False


def _answer(record: Fields, name: str, tools: frozenset[str], found: list[Issue]) -> list[Message]:
    value: Any = record.get(name)
    if isinstance(value, list):
        return read_messages(name, value, found, tools)
    return [Message("assistant", text(record, name, found))]


def mixed_forms_issue(found: str, expected: str) -> Issue:
    """The issue of a row in another form than the other rows."""
    return Issue(
        Code.FORMATS_MIXED, f"is {found}", f"{expected}, as in the other rows", "use one form per dataset"
    )
