# SPDX-License-Identifier: Apache-2.0
"""Alpaca: an instruction, its input and output; optionally a system text and history as in LLaMA-Factory."""

from typing import Any, ClassVar

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, FormatHints, Issues, Match, text
from finetune_trainer.data.row_problems import Code, Issue, normalize_line_ends, text_issue, type_name
from finetune_trainer.rows import Message, Row


class AlpacaFormat(Format):
    """The prompt is `instruction`, an empty line and `input`; the completion is `output`."""

    name: ClassVar = "Alpaca"
    title: ClassVar = "Alpaca"
    refuses_ratings: ClassVar = True
    # `text` repeats the other fields in Stanford's data.
    used: ClassVar = ("input", "system", "history", "text")

    @classmethod
    def match(cls, record: Fields, clues: FormatHints, /) -> Match | None:
        """Matches `instruction` and `output` without a prompt and a completion."""
        is_pair = clues.has_prompt(record) and clues.has_completion(record)
        return Match.FIELDS if record.keys() >= {"instruction", "output"} and not is_pair else None

    def columns(self) -> tuple[str, ...]:
        """The columns of instruction and output."""
        return ("instruction", "output")

    def row(self, record: Fields) -> Row | Issues:
        """A pair; a conversation if there is a system text or a history."""
        found: list[Issue] = []
        prompt = text(record, "instruction", found)
        if added := optional_text(record, "input", found):
            prompt = f"{prompt}\n\n{added}"
        output = text(record, "output", found)
        system = self.system(record, found)
        turns = _history(record.get("history"), found)
        if found:
            return tuple(found)
        if not system and not turns:
            return Row.pair(prompt, output)
        if system:
            turns.insert(0, Message("system", system))
        return Row((*turns, Message("user", prompt), Message("assistant", output)))


def optional_text(record: Fields, name: str, found: list[Issue]) -> str:
    """A field's text; "" if it is missing, null or empty. A value that is not a text adds an issue."""
    value = record.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return text(record, name, found)


def _history(history: Any, found: list[Issue]) -> list[Message]:
    # CSV has no lists; an empty column means no history.
    if history is None or history == "":
        return []
    if not isinstance(history, list):
        found.append(_issue("history", f"is {type_name(history)}", "a list of [instruction, output] pairs"))
        return []
    turns: list[Message] = []
    for index, pair in enumerate(history):
        path = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            state = f"a list of {len(pair)}" if isinstance(pair, list) else type_name(pair)
            found.append(_issue(path, f"is {state}", "an [instruction, output] pair"))
            continue
        for part, value in enumerate(pair):
            if issue := text_issue(f"{path}[{part}]", value):
                found.append(issue)
            else:
                turns.append(Message("assistant" if part else "user", normalize_line_ends(value)))
    return turns


def _issue(path: str, what: str, expected: str) -> Issue:
    return Issue(Code.FIELD_TYPE, f"{path} {what}", expected, "correct it", column=path)
