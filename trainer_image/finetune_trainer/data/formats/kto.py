"""KTO, as TRL has it: a prompt, a completion, and whether that is a good one."""

from typing import Any, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, Issues, missing
from finetune_trainer.data.formats.preference import read_answer, read_prompt, tools_issues
from finetune_trainer.data.formats.turnorder import order_issues
from finetune_trainer.data.problems import Code, Issue
from finetune_trainer.data.text import shown
from finetune_trainer.rows import Row

LABELS: Final = {"true": True, "false": False, "1": True, "0": False}


class KTO(Format):
    """`prompt`, `completion` (texts, or messages) and `label`."""

    named = frozenset({"prompt", "completion", "template", "label"})
    used = ("tools",)

    def columns(self) -> tuple[str, ...]:
        """All three."""
        names = self.names
        return (*self.prompt_columns, names.completion or "completion", names.label or "label")

    def row(self, record: Fields) -> Row | Issues:
        """The answer with its label."""
        *_, completion, name = self.columns()
        found = tools_issues(record)
        answer = read_answer(record, completion, found)
        turns = read_prompt(self, record, answer, found, self.names.prompt or "prompt") if answer else []
        label = label_of(record.get(name))
        if name not in record:
            found.append(missing(record, name))
        elif label is None:
            found.append(
                Issue(
                    Code.FIELD_TYPE,
                    f"{name} is {shown(record[name])}",
                    "true for a good answer or false for a bad one",
                    f"correct {name}",
                    column=name,
                )
            )
        found = found or order_issues(completion, turns)
        return tuple(found) or Row(tuple(turns), "KTO", label=label)


def label_of(value: Any) -> bool | None:
    """Whether a value says true or false; tables have texts and 0 and 1 for it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return value == 1
    return LABELS.get(value.strip().lower()) if isinstance(value, str) else None
