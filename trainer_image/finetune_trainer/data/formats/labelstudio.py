"""Exports of Label Studio: JSON (tasks with annotations), JSON_MIN, CSV and TSV (flat)."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, Issues, missing
from finetune_trainer.data.problems import Code, Issue
from finetune_trainer.data.text import field_names, normal_line_ends, printable, shown, text_issue, type_name
from finetune_trainer.rows import Row

META: Final = (
    "id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "history",
)  # fmt: skip
"""What Label Studio adds to the data and the answers in flat exports."""
COLLIDED: Final = "_data_"
"""Before the names of data in flat exports, where a control tag has the same name."""
READABLE: Final = ("choices", "textarea")


class LabelStudio(Format):
    """A field of the data is the prompt, what one control tag (its `name`) was answered the completion."""

    used: ClassVar = META

    usual_prompt: ClassVar = "text"

    def columns(self) -> tuple[str, ...]:
        """Of flat exports."""
        return (*self.prompt_columns, *((self.names.completion,) if self.names.completion else ()))

    def data(self, record: Fields) -> Fields:
        """The task's data; of flat exports all fields, those of the data by their own names."""
        if "annotations" in record:
            return record["data"] if isinstance(record.get("data"), dict) else {}
        collided = {
            name.removeprefix(COLLIDED): value for name, value in record.items() if name.startswith(COLLIDED)
        }
        return {name: value for name, value in record.items() if not name.startswith(COLLIDED)} | collided

    def row(self, record: Fields) -> Row | Issues:
        """The data's text with the answer of the control tag."""
        data = self.data(record)
        if "annotations" not in record:
            return self._flat_row(record, data)
        if not isinstance(record.get("data"), dict):
            state = type_name(record["data"]) if "data" in record else "missing"
            return (
                Issue(Code.FIELD_TYPE, f"data is {state}", "an object", "export it again", column="data"),
            )
        answers = _answers(record["annotations"])
        return (answers,) if isinstance(answers, Issue) else self._row(data, answers, list(answers))

    def _flat_row(self, record: Fields, data: Fields) -> Row | Issues:
        """All that is neither the prompt nor of Label Studio itself may be a control tag."""
        if "annotation_id" in record and record["annotation_id"] in (None, ""):
            return (_unanswered(),)
        known = {*META, *(name for name in self.table_columns() if COLLIDED + name not in record)}
        tags = [name for name in record if name not in known and not name.startswith(COLLIDED)]
        return self._row(data, record, tags)

    def _row(self, data: Fields, answers: Fields, tags: Sequence[str]) -> Row | Issues:
        found: list[Issue] = []
        prompt = self.prompt(data, found)
        completion = self._completion(answers, tags, found)
        return tuple(found) or Row.pair(prompt, completion)

    def _completion(self, answers: Fields, tags: Sequence[str], found: list[Issue]) -> str:
        name = self.names.completion
        if name is None:
            if len(tags) != 1:
                found.append(_ambiguous(tags))
                return ""
            name = tags[0]
        self._known.add(name)
        if name not in answers:
            found.append(missing(answers, name))
            return ""
        shown_name = printable(name)
        answer = _answer(shown_name, answers[name])
        issue = answer if isinstance(answer, Issue) else text_issue(shown_name, answer)
        if issue is not None:
            found.append(issue)
            return ""
        return normal_line_ends(answer)


def _answers(annotations: Any) -> Fields | Issue:
    """What the first annotation that was not cancelled says, by the control tags' names."""
    if not isinstance(annotations, list):
        return Issue(
            Code.FIELD_TYPE,
            f"annotations is {type_name(annotations)}",
            "a list",
            "export it again",
            column="annotations",
        )
    kept = (
        annotation
        for annotation in annotations
        if isinstance(annotation, dict) and not annotation.get("was_cancelled")
    )
    results = next(kept, {}).get("result")
    answers: Fields = {}
    for result in results if isinstance(results, list) else ():
        if not isinstance(result, dict) or not isinstance(result.get("from_name"), str):
            continue
        kind, value = result.get("type"), result.get("value")
        if kind in READABLE and isinstance(value, dict):
            part = value.get("choices" if kind == "choices" else "text")
            parts = part if isinstance(part, list) else [part]
            before = answers.get(result["from_name"], {}).get(kind, [])
            answers[result["from_name"]] = {kind: before + parts}
        else:
            answers.setdefault(result["from_name"], {"type": kind})
    return answers or _unanswered()


def _answer(name: str, value: Any) -> Any:
    """The text of an answer: choices joined by commas, or one text; what has another shape as it is."""
    value = _unpacked(value)
    if isinstance(value, dict) and isinstance(choices := value.get("choices"), list):
        return ", ".join(choices) if all(isinstance(choice, str) for choice in choices) else choices
    texts = value.get("textarea") if isinstance(value, dict) else value
    if isinstance(texts, list):
        if len(texts) == 1:
            return texts[0]
        return Issue(Code.FIELD_VALUE, f"{name} has {len(texts)} texts", "one text", "keep one", column=name)
    if isinstance(value, str):
        return value
    kind = value.get("type") if isinstance(value, dict) else None
    state = f"of the type {shown(kind)}" if isinstance(kind, str) else type_name(value)
    return Issue(
        Code.UNSUPPORTED,
        f"{name} is {state}",
        "the answer of Choices or TextArea",
        "name another control tag in columns.completion",
        column=name,
    )


def _unpacked(value: Any) -> Any:
    """In tables several choices are JSON."""
    if isinstance(value, str) and value.startswith('{"choices":'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _unanswered() -> Issue:
    return Issue(
        Code.FIELD_MISSING,
        "has no annotation",
        "one that was not cancelled",
        "annotate it, or remove the row",
        column="annotations",
    )


def _ambiguous(tags: Sequence[str]) -> Issue:
    if not tags:
        return Issue(
            Code.FIELD_MISSING,
            "has no answer of a control tag",
            "one",
            "annotate it, or name the tag in columns.completion",
        )
    return Issue(
        Code.FIELD_MISSING,
        f"the completion may be any of {field_names(tags, 'control tags')}",
        "the name of the control tag",
        "name it in columns.completion",
    )
