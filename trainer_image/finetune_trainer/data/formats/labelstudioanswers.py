# SPDX-License-Identifier: Apache-2.0
"""Answers in annotations of Label Studio, by the names of their control tags."""

import json
from typing import Any, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats import labelstudioissues as issues
from finetune_trainer.data.formats.labelstudiotasks import CHAT, in_order
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import shown, type_name

READABLE: Final = ("choices", "textarea")


def answers_of(annotations: Any) -> Fields | Issue:
    """Answers by the control tags' names: of the ground truth, else of annotations that were not cancelled.

    Returns an issue if annotations differ, so that the user decides.
    """
    if annotations is None:
        return issues.unanswered()
    if not isinstance(annotations, list):
        return Issue(
            Code.FIELD_TYPE,
            f"annotations is {type_name(annotations)}",
            "a list",
            "export it again",
            column="annotations",
        )
    kept = [
        annotation
        for annotation in annotations
        if isinstance(annotation, dict) and not annotation.get("was_cancelled")
    ]
    ground_truth = [annotation for annotation in kept if annotation.get("ground_truth")]
    answers = [found for each in ground_truth or kept if (found := _answers(each.get("result")))]
    if any(each != answers[0] for each in answers):
        return issues.disagreement(len(answers))
    return answers[0] if answers else issues.unanswered()


def _answers(results: Any) -> Fields:
    """The answers of one annotation."""
    answers: Fields = {}
    for result in results if isinstance(results, list) else ():
        if not isinstance(result, dict) or not isinstance(result.get("from_name"), str):
            continue
        kind, value = result.get("type"), result.get("value")
        if kind in READABLE and isinstance(value, dict):
            part = value.get("choices" if kind == "choices" else "text")
            parts = part if isinstance(part, list) else [part]
            before = answers.get(result["from_name"])
            earlier = before.get(kind, []) if isinstance(before, dict) else []
            answers[result["from_name"]] = {kind: earlier + parts}
        elif kind == "pairwise" and isinstance(value, dict) and "selected" in value:
            answers[result["from_name"]] = {"selected": value["selected"], "type": kind}
        elif kind == CHAT and isinstance(value, dict) and CHAT in value:
            before = answers.get(result["from_name"])
            earlier = before if isinstance(before, list) else []
            answers[result["from_name"]] = [*earlier, value[CHAT]]
        else:
            answers.setdefault(result["from_name"], {"type": kind})
    return {name: in_order(value) if isinstance(value, list) else value for name, value in answers.items()}


def text_of(name: str, value: Any) -> Any:
    """The text of an answer: choices joined by commas, or one text; other values unchanged, or an issue."""
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


def is_combined(value: Any) -> bool:
    """Whether an answer has several choices, which become one text."""
    value = _unpacked(value)
    choices = value.get("choices") if isinstance(value, dict) else None
    return isinstance(choices, list) and len(choices) > 1


def _unpacked(value: Any) -> Any:
    """Parse several choices, which tables have as JSON."""
    if isinstance(value, str) and value.startswith('{"choices":'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
