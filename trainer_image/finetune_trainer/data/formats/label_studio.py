# SPDX-License-Identifier: Apache-2.0
"""Exports of Label Studio: JSON (tasks with annotations), JSON_MIN, CSV and TSV (flat)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats import label_studio_tasks as issues
from finetune_trainer.data.formats.base import Format, FormatHints, Issues, Match, missing_field_issue, text
from finetune_trainer.data.formats.conversations import order_issues, read_messages
from finetune_trainer.data.formats.label_studio_tasks import (
    TRANSCRIPT,
    answers_of,
    chat_of,
    chats_in,
    conversations_in,
    is_combined,
    pair_of,
    parse_container,
    selected_of,
    sort_messages,
    text_of,
)
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_problems import (
    Code,
    Issue,
    normalize_line_ends,
    printable,
    text_issue,
    type_name,
)
from finetune_trainer.rows import Message, Row

META: Final = (
    "id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "history",
)  # fmt: skip
"""Columns that Label Studio adds to data and answers in flat exports."""
FLAT_COLUMNS: Final = ({"annotation_id", "lead_time"}, {"annotator", "lead_time"})
"""Columns that identify flat exports, with and without the annotation's number."""
COLLIDED: Final = "_data_"
"""Prefix of a data field in flat exports if a control tag has the same name."""
OLD_ANNOTATIONS: Final = "completions"
"""Name of the annotations in exports before version 1.0."""
PROMPTS: Final = ("text", "prompt")
"""Names of the prompt in a task's data, as in the templates."""
NO_MESSAGES: Final[tuple[object, ...]] = ([], "[]")
"""An empty conversation, which tables have as a text."""
NEXT_TURNS: Final = ("prompt", "response")
"""Names of the text areas that continue a conversation, as in the template for chats with a model."""


class LabelStudioFormat(Format):
    """The prompt is a field of the data; the completion is the answer of one control tag, by its `name`.

    Of tasks for generative AI, a conversation is the prompt, the tag Chat continues one, and the tag Pairwise
    prefers one of two answers.
    """

    name: ClassVar = "LabelStudio"
    title: ClassVar = "Label Studio"
    named = frozenset({"prompt", "completion", "template", "chosen", "rejected"})
    used: ClassVar = META
    usual_prompt: ClassVar = "text"

    @classmethod
    def match(cls, record: Fields, _clues: FormatHints, /) -> Match | None:
        """Matches a task, or the columns that Label Studio adds to flat exports."""
        is_flat = any(record.keys() >= columns for columns in FLAT_COLUMNS)
        return Match.EXPORT if is_flat or is_task(record) else None

    def __init__(self, recipe: Recipe) -> None:
        self._path = ""
        """Path of the turns before the answer, for messages."""
        super().__init__(recipe)

    def columns(self) -> tuple[str, ...]:
        """The columns that flat exports must have."""
        is_found = self.names.prompt is None and self.template is None
        prompts = () if is_found else self.prompt_columns
        return (*prompts, *((self.names.completion,) if self.names.completion else ()))

    def data(self, record: Fields) -> Fields:
        """The task's data; for flat exports all fields, with the prefix of data fields removed."""
        if is_task(record):
            return record["data"] if isinstance(record.get("data"), dict) else {}
        collided = {
            name.removeprefix(COLLIDED): value for name, value in record.items() if name.startswith(COLLIDED)
        }
        return {name: value for name, value in record.items() if not name.startswith(COLLIDED)} | collided

    def row(self, record: Fields) -> Row | Issues:
        """The prompt in the data with the answer of the control tag."""
        data = self.data(record)
        if not is_task(record):
            return self._flat_row(record, data)
        if not isinstance(record.get("data"), dict):
            state = type_name(record["data"]) if "data" in record else "missing"
            return (
                Issue(Code.FIELD_TYPE, f"data is {state}", "an object", "export it again", column="data"),
            )
        annotations = record.get("annotations", record.get(OLD_ANNOTATIONS))
        answers = answers_of(annotations)
        if isinstance(answers, Issue) and record.get("predictions"):
            answers = issues.only_predictions_issue()
        return (answers,) if isinstance(answers, Issue) else self._row(data, answers, list(answers))

    def _flat_row(self, record: Fields, data: Fields) -> Row | Issues:
        """Every column besides the prompt and those of Label Studio itself may be a control tag."""
        if "annotation_id" in record and record["annotation_id"] in (None, ""):
            return (issues.no_annotation_issue(),)
        known = {*META, *(name for name in self.table_columns() if COLLIDED + name not in record)}
        tags = [name for name in record if name not in known and not name.startswith(COLLIDED)]
        self._known.update(name for name, value in record.items() if value in NO_MESSAGES)
        chats = self._flat_chats(data, record, tags)
        if not chats:
            return self._row(data, record, self._flat_tags(data, record, tags), is_flat=True)
        self._known.update(name + TRANSCRIPT for name in chats)
        # Data with the name of a tag have a prefix in tables.
        answered = {name for name in (*chats, *chats_in(record, tags)) if COLLIDED + name not in record}
        data = {name: value for name, value in data.items() if name not in answered}
        messages = {name: sort_messages(parse_container(record[name])) for name in chats}
        return self._row(data, {**record, **messages}, chats, is_flat=True)

    def _flat_chats(self, data: Fields, record: Fields, tags: Sequence[str]) -> list[str]:
        """The columns with the answers of the tag Chat: the named one, or those that the values identify."""
        name, conversations = self.names.completion, conversations_in(record, ())
        if name is not None:
            return [name] if name in conversations else []
        if found := chats_in(record, tags):
            return found
        others = self._flat_tags(data, record, tags)
        is_prompted = self.names.prompt is not None or self.template is not None or data.keys() & set(PROMPTS)
        # An annotated conversation without any other answer is the answer itself.
        return [] if others or is_prompted or len(conversations) != 1 else list(conversations)

    def _flat_tags(self, data: Fields, record: Fields, tags: Sequence[str]) -> list[str]:
        """The tags without the data fields that values and usual names identify."""
        special = [name for name in tags if _is_special(record[name])]
        if special:
            return special
        prompts = PROMPTS if self.names.prompt is None else ()
        of_data = {*conversations_in(data, ()), *(name for name in prompts if COLLIDED + name not in record)}
        return [name for name in tags if name not in of_data and record[name] not in NO_MESSAGES]

    def _row(
        self, data: Fields, answers: Fields, tags: Sequence[str], *, is_flat: bool = False
    ) -> Row | Issues:
        found: list[Issue] = []
        special = [name for name in tags if _is_special(answers[name])]
        if len(special) > 1 and self.names.completion is None:
            return (issues.ambiguous_tags_issue(special),)
        if self.names.completion in special or (self.names.completion is None and len(special) == 1):
            name = self.names.completion or special[0]
            self._known.add(name)
            is_chat = chat_of(answers[name]) is not None
            return (self._chat if is_chat else self._pairwise)(data, name, answers[name])
        question, reply = self.names.prompt or NEXT_TURNS[0], self.names.completion or NEXT_TURNS[1]
        is_next = (question, reply) == NEXT_TURNS if is_flat else question not in data
        if is_next and self.template is None and question in answers and reply in answers:
            history = conversations_in(data, (question, reply))
            # The history of a conversation that begins here is an empty list.
            if history or any(value in NO_MESSAGES for value in data.values()):
                return self._next_turns(history, answers, question, reply)
        turns = self._context(data, tags, found)
        completion = self._completion(answers, tags, found)
        return tuple(found) or _row(turns, Message("assistant", completion), self._path)

    def _next_turns(self, conversations: Fields, answers: Fields, question: str, reply: str) -> Row | Issues:
        """A conversation that two text areas continue: the next question, and the answer to learn."""
        if len(conversations) > 1:
            return (issues.several_prompts_issue(list(conversations)),)
        found: list[Issue] = []
        self._known.update((*conversations, question, reply))
        path, before = next(iter(conversations.items()), (question, None))
        turns = (
            [] if before is None else list(_as_context(read_messages(printable(path), before, found, None)))
        )
        turns.append(Message("user", self._answer(answers, question, found)))
        answer = Message("assistant", self._answer(answers, reply, found))
        return tuple(found) or _row(turns, answer, printable(path))

    def _chat(self, data: Fields, name: str, answer: Any) -> Row | Issues:
        """A conversation in which the turns of the task's data are context only."""
        found: list[Issue] = []
        messages, before = chat_of(answer) or [], conversations_in(data, ())
        if len(before) > 1:
            return (issues.several_prompts_issue(list(before)),)
        self._known.update(before)
        (old,) = before.values() or ([],)
        if messages[: len(old)] != old:
            messages = [*old, *messages]
        turns = read_messages(printable(name), messages, found, None)
        found = found or order_issues(printable(name), turns)
        if found:
            return tuple(found)
        return Row(
            (*_as_context(turns[: len(old)]), *turns[len(old) :]) if len(old) < len(turns) else tuple(turns)
        )

    def _pairwise(self, data: Fields, name: str, answer: Any) -> Row | Issues:
        """The preference for the selected answer over the other one."""
        names = self.names
        pair = (names.chosen, names.rejected) if names.chosen and names.rejected else pair_of(data)
        if pair is None:
            return (issues.no_pair(data),)
        selected = selected_of(answer)
        if selected not in ("left", "right"):
            return (issues.no_choice_issue(printable(name)),)
        found: list[Issue] = []
        self._known.update(pair)
        left, right = (text(data, field, found) for field in pair)
        turns = self._context(data, [name, *pair], found)
        if not found and left == right:
            found.append(issues.same_answers(pair))
        chosen, rejected = (left, right) if selected == "left" else (right, left)
        if found:
            return tuple(found)
        row = _row(turns, Message("assistant", chosen), self._path)
        return replace(row, form="Preference", rejected=rejected) if isinstance(row, Row) else row

    def _context(self, data: Fields, answers: Sequence[str], found: list[Issue]) -> list[Message]:
        """The turns before the answer: a prompt's text, or a conversation."""
        in_template = () if self.template is None else self.template.columns
        conversations = conversations_in(data, (*answers, *in_template))
        name = self.names.prompt
        if name is None and self.template is None:
            texts = [each for each in PROMPTS if each in data and each not in conversations]
            if len(conversations) > 1 or (conversations and texts):
                found.append(issues.several_prompts_issue([*texts[:1], *conversations]))
                return []
            others = [each for each, value in data.items() if isinstance(value, str) and each not in answers]
            only = others if len(others) == 1 else ()
            name = next(iter((*conversations, *texts, *only)), self.usual_prompt)
        self._path = printable(name or self.prompt_columns[0])
        if name is not None:
            self._known.add(name)
        if name in conversations:
            return list(_as_context(read_messages(self._path, conversations[name], found, None)))
        if conversations:
            found.append(issues.lost_conversation_issue(self._path, list(conversations)))
            return []
        return [Message("user", self.prompt(data, found) if name is None else text(data, name, found))]

    def _completion(self, answers: Fields, tags: Sequence[str], found: list[Issue]) -> str:
        name = self.names.completion
        if name is None:
            if len(tags) != 1:
                found.append(issues.ambiguous_tags_issue(tags))
                return ""
            name = tags[0]
        return self._answer(answers, name, found)

    def _answer(self, answers: Fields, name: str, found: list[Issue]) -> str:
        """The text of a control tag's answer; "" if it is invalid, with an issue in `found`."""
        self._known.add(name)
        if name not in answers:
            found.append(missing_field_issue(answers, name))
            return ""
        shown_name = printable(name)
        answer = text_of(shown_name, answers[name])
        self.combined += is_combined(answers[name])
        issue = answer if isinstance(answer, Issue) else text_issue(shown_name, answer)
        if issue is not None:
            found.append(issue)
            return ""
        return normalize_line_ends(answer)


def is_task(record: Fields) -> bool:
    """Whether a record is a task with separate data; otherwise it is a row of a flat export."""
    return "annotations" in record or (
        isinstance(record.get("data"), dict)
        and any(isinstance(record.get(name), list) for name in (OLD_ANNOTATIONS, "predictions"))
    )


def _as_context(turns: Iterable[Message]) -> Iterator[Message]:
    """The turns, none of them learned."""
    return (replace(turn, learned=False) if turn.role == "assistant" else turn for turn in turns)


def _row(turns: Sequence[Message], answer: Message, path: str) -> Row | Issues:
    if len(turns) == 1 and turns[0].role == "user":
        return Row.pair(turns[0].content, answer.content)
    every = (*turns, answer)
    return tuple(order_issues(path, every)) or Row(every)


def _is_special(value: Any) -> bool:
    """Whether an answer comes from the tag Chat or Pairwise."""
    return chat_of(value) is not None or selected_of(value) is not None
