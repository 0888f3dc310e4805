# SPDX-License-Identifier: Apache-2.0
"""KTO as in TRL: a prompt, a completion, and whether the completion is good."""

from typing import ClassVar

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, FormatHints, Issues, Match, missing_field_issue
from finetune_trainer.data.formats.conversations import order_issues, prepend_system
from finetune_trainer.data.formats.field_meanings import label_of
from finetune_trainer.data.formats.preference import read_answer, read_prompt, tools_issues
from finetune_trainer.data.row_problems import Code, Issue, show_value
from finetune_trainer.rows import Row


class KTOFormat(Format):
    """`prompt`, `completion` (texts or messages) and `label`."""

    name: ClassVar = "KTO"
    title: ClassVar = "rated answers (KTO)"
    named = frozenset({"prompt", "completion", "template", "label"})
    used = ("system", "tools")

    @classmethod
    def match(cls, record: Fields, clues: FormatHints, /) -> Match | None:
        """Matches the label that the recipe names, or one that is true or false."""
        if (
            clues.names.label is not None
            and clues.names.label in record
            and clues.has_plain_completion(record)
        ):
            return Match.NAMED
        if not (clues.has_prompt(record) and clues.has_completion(record)):
            return None
        return Match.FIELDS if clues.ratings.is_kto(record) else None

    def columns(self) -> tuple[str, ...]:
        """The columns of prompt, completion and label."""
        names = self.names
        return (*self.prompt_columns, names.completion or "completion", names.label or "label")

    def row(self, record: Fields) -> Row | Issues:
        """The answer with its label."""
        *_, completion, name = self.columns()
        found = tools_issues(record)
        answer = read_answer(record, completion, found)
        turns = read_prompt(self, record, answer, found, self.names.prompt or "prompt") if answer else []
        turns = prepend_system(self.system(record, found), completion, turns, found)
        label = label_of(record.get(name))
        if name not in record:
            found.append(missing_field_issue(record, name))
        elif label is None:
            found.append(
                Issue(
                    Code.FIELD_TYPE,
                    f"{name} is {show_value(record[name])}",
                    "true for a good answer or false for a bad one",
                    f"correct {name}",
                    column=name,
                )
            )
        found = found or order_issues(completion, turns)
        return tuple(found) or Row(tuple(turns), "KTO", label=label)
