"""Alpaca: an instruction, its input and the output; with a system text and history as in LLaMA-Factory."""

from typing import Any, ClassVar

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, Issues, text
from finetune_trainer.data.formats.clues import Clues, Match
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import normal_line_ends, text_issue, type_name
from finetune_trainer.rows import Message, Row


class AlpacaFormat(Format):
    """`instruction` and `input`, with an empty line between, are the prompt, `output` the completion."""

    name: ClassVar = "Alpaca"
    title: ClassVar = "Alpaca"
    refuses_ratings: ClassVar = True
    # `text` is all of it again, in the data of Stanford.
    used: ClassVar = ("input", "system", "history", "text")

    @classmethod
    def match(cls, record: Fields, clues: Clues, /) -> Match | None:
        """By `instruction` and `output`, where these are not beside a prompt and its completion."""
        is_pair = clues.has_prompt(record) and clues.has_completion(record)
        return Match.FIELDS if record.keys() >= {"instruction", "output"} and not is_pair else None

    def columns(self) -> tuple[str, ...]:
        """Instruction and output."""
        return ("instruction", "output")

    def row(self, record: Fields) -> Row | Issues:
        """A pair, or a conversation where there is a system text or history."""
        found: list[Issue] = []
        prompt = text(record, "instruction", found)
        if added := optional_text(record, "input", found):
            prompt = f"{prompt}\n\n{added}"
        output = text(record, "output", found)
        system = optional_text(record, "system", found)
        turns = _history(record.get("history"), found)
        if found:
            return tuple(found)
        if not system and not turns:
            return Row.pair(prompt, output)
        if system:
            turns.insert(0, Message("system", system))
        return Row((*turns, Message("user", prompt), Message("assistant", output)))


def optional_text(record: Fields, name: str, found: list[Issue]) -> str:
    """A field's text; "" where it is missing, null, empty or no text, the last with what is wrong with it."""
    value = record.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return text(record, name, found)


def _history(history: Any, found: list[Issue]) -> list[Message]:
    # CSV has no lists; an empty column is no history.
    if history is None or history == "":
        return []
    if not isinstance(history, list):
        found.append(_issue("history", f"is {type_name(history)}", "a list of [instruction, output] pairs"))
        return []
    turns: list[Message] = []
    for index, pair in enumerate(history):
        place = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            state = f"a list of {len(pair)}" if isinstance(pair, list) else type_name(pair)
            found.append(_issue(place, f"is {state}", "an [instruction, output] pair"))
            continue
        for part, value in enumerate(pair):
            if issue := text_issue(f"{place}[{part}]", value):
                found.append(issue)
            else:
                turns.append(Message("assistant" if part else "user", normal_line_ends(value)))
    return turns


def _issue(place: str, what: str, expected: str) -> Issue:
    return Issue(Code.FIELD_TYPE, f"{place} {what}", expected, "correct it", column=place)
