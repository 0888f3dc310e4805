# SPDX-License-Identifier: Apache-2.0
"""Issues of tasks of Label Studio."""

from collections.abc import Sequence

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import field_name, field_names


def disagreement(count: int) -> Issue:
    """Annotations differ."""
    return Issue(
        Code.FIELD_VALUE,
        f"has {count} annotations that differ",
        "one annotation, or one marked as ground truth",
        "mark the correct one in Label Studio, or remove the row",
        column="annotations",
    )


def predicted() -> Issue:
    """The task has predictions of a model, but no annotation."""
    return Issue(
        Code.FIELD_MISSING,
        "has predictions, but no annotation",
        "an annotation: predictions come from a model",
        "annotate it, or create annotations from predictions in Label Studio's data manager",
        column="annotations",
    )


def conversations(names: Sequence[str]) -> Issue:
    """Several fields may be the prompt."""
    return Issue(
        Code.FIELD_VALUE,
        f"the prompt may be any of {field_names(names)}",
        "the name of the prompt",
        "name it in columns.prompt",
    )


def history(name: str, conversations: Sequence[str]) -> Issue:
    """The prompt would leave out a conversation."""
    return Issue(
        Code.FIELD_VALUE,
        f"{field_name(name)} would be read without the conversation in {field_names(conversations)}",
        "the whole conversation as the prompt",
        "name the conversation in columns.prompt, or remove it from the data",
        column=name,
    )


def no_pair(data: Fields) -> Issue:
    """The names of a pairwise task's answers are unknown."""
    return Issue(
        Code.FIELD_MISSING,
        f"the two answers are not recognized among {field_names(data)}",
        '"answer1" and "answer2"',
        "name the left one in columns.chosen and the right one in columns.rejected",
    )


def not_chosen(name: str) -> Issue:
    """A pairwise task has no choice."""
    return Issue(
        Code.FIELD_VALUE,
        f"{field_name(name)} prefers neither answer",
        "left or right",
        "choose one, or remove the row",
        column=name,
    )


def same_answers(pair: tuple[str, str]) -> Issue:
    """Both answers of a pairwise task are the same."""
    return Issue(
        Code.FIELD_VALUE,
        f"{field_name(pair[0])} and {field_name(pair[1])} are the same",
        "two answers of which one is better",
        "remove the row",
        column=pair[1],
    )


def unanswered() -> Issue:
    """The task has no annotation."""
    return Issue(
        Code.FIELD_MISSING,
        "has no annotation",
        "an annotation that was not cancelled",
        "annotate it, or remove the row",
        column="annotations",
    )


def ambiguous(tags: Sequence[str]) -> Issue:
    """The task has several control tags, or none."""
    if not tags:
        return Issue(
            Code.FIELD_MISSING,
            "has no answer of a control tag",
            "an answer",
            "annotate it, or name the tag in columns.completion",
        )
    return Issue(
        Code.FIELD_MISSING,
        f"the completion may be any of {field_names(tags, 'control tags')}",
        "the name of the control tag",
        "name it in columns.completion",
    )
