# SPDX-License-Identifier: Apache-2.0
"""Values and annotated answers of Label Studio's tasks for generative AI, and their issues.

The values are conversations, selected answers, and chat messages. The names of the control tags identify the
answers in annotations.
"""

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.row_problems import Code, Issue, field_name, field_names, show_value, type_name

ROLE_FIELDS: Final = ("role", "author", "from", "speaker")
CONTENT_FIELDS: Final = ("content", "text", "value")
"""Names of a message's fields: first those of the OpenAI API, then those of the tag Paragraphs."""
ROLES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("user", "human", "customer", "client", "question"), "user"),
    **dict.fromkeys(("assistant", "bot", "ai", "gpt", "model", "chatbot", "agent", "answer"), "assistant"),
    "system": "system",
}
CHAT: Final = "chatmessage"
"""Type and field of one message of the tag Chat."""
CREATED: Final = "createdAt"
"""Field of a message with its time, by which the messages of the tag Chat are ordered."""
TRANSCRIPT: Final = "_transcript"
"""Suffix of a column in tables that repeats the messages of the tag Chat as a text."""
PAIRS: Final = (
    ("answer1", "answer2"),
    ("response1", "response2"),
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
    ("text1", "text2"),
    ("left", "right"),
)
"""Names of the two answers of a pairwise task, the left one first."""
MAX_LITERAL_CHARACTERS: Final = 1 << 20
"""Maximum length of a list to parse as a Python literal, which takes memory."""


def parse_container(value: Any) -> Any:
    """Parse a list or object that a table has as a text: as JSON, or as a Python literal."""
    if not isinstance(value, str) or not value.startswith(("[{", '{"', "{'")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if len(value) > MAX_LITERAL_CHARACTERS:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def conversation_of(value: Any) -> list[dict[str, Any]] | None:
    """The messages of a conversation, with `role` and `content`; None for another value."""
    value = parse_container(value)
    if not isinstance(value, list) or not value:
        return None
    messages = [_message(each) for each in value]
    return None if None in messages else messages  # type: ignore[return-value]


def selected_of(value: Any) -> str | None:
    """The selected answer of a pairwise task: left, right, or another text for neither."""
    value = _only(parse_container(value))
    return value["selected"] if isinstance(value, dict) and isinstance(value.get("selected"), str) else None


def chat_of(value: Any) -> list[Any] | None:
    """The messages of the tag Chat; None for another value."""
    value = parse_container(value)
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, dict) and CHAT in part for part in parts):
        return None
    return [_message(message) or message for message in (part[CHAT] for part in parts)]


def sort_messages(messages: Sequence[Any]) -> list[Fields]:
    """Messages of the tag Chat in the order of their times, which are removed; each as `chat_of` reads it."""
    if _are_timed(messages):
        messages = sorted(messages, key=itemgetter(CREATED))
    return [
        {CHAT: {name: each[name] for name in each if name != CREATED} if isinstance(each, dict) else each}
        for each in messages
    ]


def chats_in(record: Fields, names: Iterable[str]) -> list[str]:
    """Those columns of a flat export that have the messages of the tag Chat.

    Tables have a transcript next to them. In JSON_MIN their messages have a time, unlike those of the data.
    """
    found = [name for name in names if conversation_of(record[name]) is not None]
    with_transcript = [name for name in found if name + TRANSCRIPT in record]
    return with_transcript or [name for name in found if _are_timed(parse_container(record[name]))]


def pair_of(names: Iterable[str]) -> tuple[str, str] | None:
    """The two answers of a pairwise task among the names of its data."""
    present = set(names)
    return next((pair for pair in PAIRS if present.issuperset(pair)), None)


def conversations_in(data: Fields, without: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The conversations among a task's fields, except the fields `without`."""
    excluded = set(without)
    return {
        name: messages
        for name, value in data.items()
        if name not in excluded and (messages := conversation_of(value)) is not None
    }


def _are_timed(messages: Sequence[Any]) -> bool:
    """Whether all messages have a time as Label Studio writes it: a number."""
    return all(isinstance(each, dict) and isinstance(each.get(CREATED), int | float) for each in messages)


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _message(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    speaker = next((value[name] for name in ROLE_FIELDS if name in value), None)
    content = next((name for name in CONTENT_FIELDS if name in value), None)
    if not isinstance(speaker, str) or content is None:
        return None
    return {"role": ROLES.get(speaker.strip().lower(), speaker), "content": value[content]}


def disagreement(count: int) -> Issue:
    """Annotations differ."""
    return Issue(
        Code.FIELD_VALUE,
        f"has {count} annotations that differ",
        "one annotation, or one marked as ground truth",
        "mark the correct one in Label Studio, or remove the row",
        column="annotations",
    )


def only_predictions_issue() -> Issue:
    """The task has predictions of a model, but no annotation."""
    return Issue(
        Code.FIELD_MISSING,
        "has predictions, but no annotation",
        "an annotation: predictions come from a model",
        "annotate it, or create annotations from predictions in Label Studio's data manager",
        column="annotations",
    )


def several_prompts_issue(names: Sequence[str]) -> Issue:
    """Several fields may be the prompt."""
    return Issue(
        Code.FIELD_VALUE,
        f"the prompt may be any of {field_names(names)}",
        "the name of the prompt",
        "name it in columns.prompt",
    )


def lost_conversation_issue(name: str, conversations: Sequence[str]) -> Issue:
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


def no_choice_issue(name: str) -> Issue:
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


def no_annotation_issue() -> Issue:
    """The task has no annotation."""
    return Issue(
        Code.FIELD_MISSING,
        "has no annotation",
        "an annotation that was not cancelled",
        "annotate it, or remove the row",
        column="annotations",
    )


def ambiguous_tags_issue(tags: Sequence[str]) -> Issue:
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


READABLE: Final = ("choices", "textarea")


def answers_of(annotations: Any) -> Fields | Issue:
    """Answers by the control tags' names: of the ground truth, else of annotations that were not cancelled.

    Returns an issue if annotations differ, so that the user decides.
    """
    if annotations is None:
        return no_annotation_issue()
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
        return disagreement(len(answers))
    return answers[0] if answers else no_annotation_issue()


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
    return {
        name: sort_messages(value) if isinstance(value, list) else value for name, value in answers.items()
    }


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
    state = f"of the type {show_value(kind)}" if isinstance(kind, str) else type_name(value)
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
