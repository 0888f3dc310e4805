"""Preference pairs, as TRL has them: a prompt, and a chosen and a rejected answer."""

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, Issues, missing, text
from finetune_trainer.data.formats.messages import order_issues, read_messages, unsupported
from finetune_trainer.data.options import Recipe
from finetune_trainer.data.problems import Code, Issue
from finetune_trainer.rows import Message, Row


class Preference(Format):
    """`prompt`, `chosen` and `rejected`: texts or messages; in whole conversations the prompt is implicit."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._known.update(self.prompt_columns)
        self._known.add("tools")

    def columns(self) -> tuple[str, ...]:
        """The answers; a prompt may be in them."""
        return (self.names.chosen or "chosen", self.names.rejected or "rejected")

    def row(self, record: Fields) -> Row | Issues:
        """The pair of answers."""
        found = tools_issues(record)
        answers = {name: read_answer(record, name, found) for name in self.columns()}
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
        turns = read_prompt(self, record, chosen, found)
        found = found or order_issues(chosen_name, turns)
        return tuple(found) or Row(tuple(turns), "Preference", rejected=rejected[-1].content)


def tools_issues(record: Fields) -> list[Issue]:
    """Tools are for chats only."""
    return [unsupported("tools")] if record.get("tools") else []


def read_answer(record: Fields, name: str, found: list[Issue]) -> list[Message]:
    """An answer's turns, of which the last is the answer itself; a text is one turn."""
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


def read_prompt(form: Format, record: Fields, answer: list[Message], found: list[Issue]) -> list[Message]:
    """All turns up to an answer, with it: those of the prompt, unless the answer's own begin with them."""
    name = form.names.prompt or "prompt"
    before = answer[:-1]
    value = record.get(name) if form.template is None else None
    if isinstance(value, list):
        prompt = read_messages(name, value, found, None)
        return answer if before[: len(prompt)] == prompt else [*prompt, *answer]
    # In a whole conversation the prompt is there too; beside it a prompt's text is the same again.
    if before:
        return answer
    if form.template is None and name not in record:
        found.append(missing(record, name))
        return answer
    return [Message("user", form.prompt(record, found)), *answer]
