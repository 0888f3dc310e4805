# SPDX-License-Identifier: Apache-2.0
"""Exports of doccano: text classification and sequence to sequence, as JSON Lines, JSON or CSV."""

from typing import Any, ClassVar, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, FormatHints, Issues, Match
from finetune_trainer.data.row_problems import Code, Issue, normalize_line_ends, text_issue
from finetune_trainer.rows import Row

COLUMNS: Final = {"id", "text", "label"}


class DoccanoFormat(Format):
    """`text`, and `label` (`labels` in old versions) with one label or text."""

    name: ClassVar = "Doccano"
    title: ClassVar = "doccano"
    used: ClassVar = ("id", "Comments", "label", "labels", "entities", "cats")
    usual_prompt: ClassVar = "text"

    named = frozenset({"prompt", "completion", "template"})

    @classmethod
    def match(cls, record: Fields, clues: FormatHints, /) -> Match | None:
        """Matches the columns of its tables, with other fields only without a prompt; in JSON, a list."""
        fields = record.keys()
        if not clues.table:
            label: Any = record.get("label", record.get("labels"))
            return Match.FIELDS if isinstance(label, list) and fields >= {"id", "text"} else None
        if fields - {"Comments"} == COLUMNS:
            return Match.FIELDS
        is_other = clues.has_prompt(record) or clues.has_completion(record)
        return Match.FIELDS if fields >= COLUMNS and not is_other else None

    def columns(self) -> tuple[str, ...]:
        """The columns of text and label."""
        return (*self.prompt_columns, self.names.completion or "label")

    def row(self, record: Fields) -> Row | Issues:
        """The text with its label."""
        found: list[Issue] = []
        prompt = self.prompt(record, found)
        completion = self._label(record, found)
        return tuple(found) or Row.pair(prompt, completion)

    def _label(self, record: Fields, found: list[Issue]) -> str:
        name = self.names.completion or (
            "labels" if "label" not in record and "labels" in record else "label"
        )
        value = record.get(name)
        labels = value if isinstance(value, list) else [value]
        if labels in ([], [None], [""]):
            found.append(
                Issue(
                    Code.FIELD_MISSING,
                    f"{name} has no label",
                    "one label",
                    "annotate it, or remove the row",
                    column=name,
                )
            )
        elif isinstance(labels[0], list | dict):
            found.append(_unsupported_kind(name))
        elif len(labels) > 1:
            found.append(
                Issue(
                    Code.FIELD_VALUE,
                    f"{name} has {len(labels)} labels",
                    "one label",
                    "keep one",
                    column=name,
                )
            )
        elif issue := text_issue(name, labels[0]):
            found.append(issue)
        return "" if found else normalize_line_ends(str(labels[0]))


def _unsupported_kind(name: str) -> Issue:
    return Issue(
        Code.UNSUPPORTED,
        f"{name} marks parts of the text",
        "text classification or sequence to sequence",
        "export a project of one of these kinds",
        column=name,
    )
