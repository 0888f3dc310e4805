# SPDX-License-Identifier: Apache-2.0
"""Preference pairs as in TRL (a prompt, a chosen and a rejected answer) and as in the OpenAI API."""

from collections.abc import Sequence
from typing import ClassVar, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import (
    EMPTY,
    Format,
    FormatHints,
    Issues,
    Match,
    missing_field_issue,
    text,
)
from finetune_trainer.data.formats.conversations import (
    order_issues,
    prepend_system,
    read_messages,
    unsupported_field_issue,
)
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_problems import Code, Issue
from finetune_trainer.rows import Message, Row

OPENAI_FIELDS: Final = frozenset({"input", "preferred_output", "non_preferred_output"})
MESSAGES: Final = "messages"
"""Field of a chat that rows with two answers may have too."""
OPENAI_INPUT: Final = frozenset({"messages", "tools", "parallel_tool_calls"})


class PreferenceFormat(Format):
    """`prompt`, `chosen` and `rejected`: texts or messages. Whole conversations include the prompt."""

    name: ClassVar = "Preference"
    title: ClassVar = "preference pairs"
    named = frozenset({"prompt", "template", "chosen", "rejected"})
    used: ClassVar = ("system", "tools")

    @classmethod
    def match(cls, record: Fields, clues: FormatHints, /) -> Match | None:
        """Matches both answers."""
        names = clues.names
        if names.chosen in record and names.rejected in record:
            return Match.NAMED
        # A chat does not have two answers.
        if MESSAGES in record and all(record.get(name) not in EMPTY for name in clues.answers):
            return Match.SHAPE
        if is_openai(record):
            return Match.SHAPE
        return Match.FIELDS if record.keys() >= clues.answers else None

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._known.update(self.prompt_columns)

    def columns(self) -> tuple[str, ...]:
        """The columns of the answers, which may include the prompt."""
        return (self.names.chosen or "chosen", self.names.rejected or "rejected")

    def header_issues(self, columns: Sequence[str]) -> Issues:
        """Issues about missing columns of a table."""
        if set(columns) >= OPENAI_FIELDS:
            return ()
        return super().header_issues(columns)

    def row(self, record: Fields) -> Row | Issues:
        """The preference pair."""
        if is_openai(record):
            return self._openai_row(record)
        prompt = self.names.prompt or "prompt"
        has_messages = record.get(MESSAGES) not in EMPTY and prompt != MESSAGES
        return (
            self._with_messages(record, prompt) if has_messages else self._row(record, self.columns(), prompt)
        )

    def _openai_row(self, record: Fields) -> Row | Issues:
        self._known |= OPENAI_FIELDS
        given = record["input"]
        self.note_unused({name: given[name] for name in given if name not in OPENAI_INPUT}, "input.")
        if given.get("tools"):
            return (unsupported_field_issue("input.tools"),)
        fields = {name: value for name, value in record.items() if name in OPENAI_FIELDS}
        if "messages" in given:
            fields["input.messages"] = given["messages"]
        return self._row(fields, ("preferred_output", "non_preferred_output"), "input.messages")

    def _with_messages(self, record: Fields, prompt: str) -> Row | Issues:
        """A row that also has `messages`: its prompt, or what prompt and answers repeat."""
        self._known.add(MESSAGES)
        chosen = record.get(self.columns()[0])
        is_whole = isinstance(chosen, list) and len(chosen) > 1
        if prompt not in record and self.template is None and not is_whole:
            return self._row(record, self.columns(), MESSAGES)
        row = self._row(record, self.columns(), prompt)
        found: list[Issue] = []
        turns = read_messages(MESSAGES, record[MESSAGES], found, None)
        if not isinstance(row, Row) or found:
            return tuple(found) if isinstance(row, Row) else row
        spoken, before = ([(turn.role, turn.content) for turn in each] for each in (turns, row.input))
        answers = [[], *([("assistant", answer)] for answer in (row.output, row.rejected))]
        if any(spoken == before[start:] + answer for start in (0, 1) for answer in answers):
            return row
        return (
            Issue(
                Code.FORMATS_MIXED,
                "messages has other turns than the prompt and its answers",
                "one conversation",
                "remove messages, or the preferred and the rejected answer",
                column=MESSAGES,
            ),
        )

    def _row(self, record: Fields, columns: tuple[str, ...], prompt: str) -> Row | Issues:
        found = tools_issues(record)
        answers = {name: read_answer(record, name, found) for name in columns}
        (chosen_name, chosen), (rejected_name, rejected) = answers.items()
        if found:
            return tuple(found)
        if chosen[:-1] != rejected[:-1]:
            found.append(
                Issue(
                    Code.FIELD_VALUE,
                    f"{chosen_name} and {rejected_name} differ before their last turns",
                    "the same conversation up to the answer",
                    "make them the same, or remove the row",
                    column=rejected_name,
                )
            )
        elif chosen[-1] == rejected[-1]:
            found.append(
                Issue(
                    Code.FIELD_VALUE,
                    f"{chosen_name} and {rejected_name} are the same",
                    "two answers of which one is better",
                    "remove the row",
                    column=rejected_name,
                )
            )
        turns = read_prompt(self, record, chosen, found, prompt)
        path = prompt if isinstance(record.get(prompt), list) else chosen_name
        turns = prepend_system(self.system(record, found), path, turns, found)
        found = found or order_issues(chosen_name, turns)
        return tuple(found) or Row(tuple(turns), "Preference", rejected=rejected[-1].content)


def tools_issues(record: Fields) -> list[Issue]:
    """The issue of tools, which only chats may have."""
    return [unsupported_field_issue("tools")] if record.get("tools") else []


def read_answer(record: Fields, name: str, found: list[Issue]) -> list[Message]:
    """The turns of an answer, of which the last is the answer itself. A text is one turn."""
    value = record.get(name)
    if not isinstance(value, list):
        return [Message("assistant", text(record, name, found))]
    before = len(found)
    turns = read_messages(name, value, found, None)
    if len(found) == before and turns[-1].role != "assistant":
        found.append(
            Issue(
                Code.TURN_ORDER,
                f"{name} ends with {turns[-1].role}",
                "the assistant's turn last",
                "add the answer",
                column=name,
            )
        )
    return turns


def is_openai(record: Fields) -> bool:
    """Whether a record is a preference as in the OpenAI API."""
    return record.keys() >= OPENAI_FIELDS and isinstance(record["input"], dict)


def read_prompt(
    form: Format, record: Fields, answer: list[Message], found: list[Issue], name: str
) -> list[Message]:
    """All turns up to and including the answer. The prompt is added unless the answer begins with it."""
    before = answer[:-1]
    value = record.get(name) if form.template is None else None
    if isinstance(value, list):
        prompt = read_messages(name, value, found, None)
        return answer if before[: len(prompt)] == prompt else [*prompt, *answer]
    # A whole conversation includes the prompt; a prompt in text form then only repeats it.
    if before:
        return answer
    if form.template is None and name not in record:
        found.append(missing_field_issue(record, name))
        return answer
    return [Message("user", form.prompt(record, found)), *answer]
