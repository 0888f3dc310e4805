"""What may be wrong with a task of Label Studio."""

from collections.abc import Sequence

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import field_name, field_names


def disagreement(count: int) -> Issue:
    """Of annotations that say different things."""
    return Issue(
        Code.FIELD_VALUE,
        f"has {count} annotations that differ",
        "one, or one that is marked as ground truth",
        "decide in Label Studio which is right, or remove the row",
        column="annotations",
    )


def predicted() -> Issue:
    """Of a task that nobody annotated, but a model."""
    return Issue(
        Code.FIELD_MISSING,
        "has predictions, and no annotation",
        "an annotation: predictions are what a model said",
        "annotate it, or create annotations from predictions in Label Studio's data manager",
        column="annotations",
    )


def conversations(names: Sequence[str]) -> Issue:
    """Of several fields that may be the prompt."""
    return Issue(
        Code.FIELD_VALUE,
        f"the prompt may be any of {field_names(names)}",
        "the name of the prompt",
        "name it in columns.prompt",
    )


def history(name: str, conversations: Sequence[str]) -> Issue:
    """Of a prompt that would leave a conversation out."""
    return Issue(
        Code.FIELD_VALUE,
        f"{field_name(name)} would be read without the conversation in {field_names(conversations)}",
        "the whole conversation as the prompt",
        "name the conversation in columns.prompt, or remove it from the data",
        column=name,
    )


def no_pair(data: Fields) -> Issue:
    """Of a pairwise task whose answers are not known by their names."""
    return Issue(
        Code.FIELD_MISSING,
        f"the two answers are not told among {field_names(data)}",
        '"answer1" and "answer2"',
        "name the left one in columns.chosen and the right one in columns.rejected",
    )


def not_chosen(name: str) -> Issue:
    """Of a pairwise task without a choice."""
    return Issue(
        Code.FIELD_VALUE,
        f"{field_name(name)} prefers neither answer",
        "left or right",
        "choose one, or remove the row",
        column=name,
    )


def same_answers(pair: tuple[str, str]) -> Issue:
    """Of a pairwise task with one answer."""
    return Issue(
        Code.FIELD_VALUE,
        f"{field_name(pair[0])} and {field_name(pair[1])} are the same",
        "two answers of which one is better",
        "remove the row",
        column=pair[1],
    )


def unanswered() -> Issue:
    """Of a task without annotation."""
    return Issue(
        Code.FIELD_MISSING,
        "has no annotation",
        "one that was not cancelled",
        "annotate it, or remove the row",
        column="annotations",
    )


def ambiguous(tags: Sequence[str]) -> Issue:
    """Of several control tags, or none."""
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
