# SPDX-License-Identifier: Apache-2.0
"""What a field that no format reads may mean for training, by its name or by a value that rates an answer.

If nothing reads a field with a meaning, a warning names it. If a file has no field that a format reads, its
usual names of questions and answers show how to map them.

Rows with a field that rates an answer are KTO, are left out, or the user must set the format.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, Final

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.recipe import FieldNames
from finetune_trainer.data.row_problems import Code, Issue


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a field may mean by its name."""

    what: str
    """Completes the sentence "by its name it …"."""
    fix: str
    """What to do if it has this meaning."""


_SYSTEM: Final = Meaning(
    "may be the system prompt of the row", "rename it to system, or write it as the first message"
)
_PREFERENCE: Final = Meaning("may be a better or a worse answer", "set format: Preference to read it")
_PROMPT: Final = Meaning(
    "may be a part of the prompt", "set template to build the prompt from several fields"
)
_LEARNING: Final = Meaning(
    "may say what is learned, or how strongly", "set weight: 0 in messages that shall not be learned"
)
_RATING: Final = Meaning(
    "may rate the answer",
    "remove rows with bad answers, or set format: KTO and write the rating as a label of true or false",
)
_ANSWER: Final = Meaning(
    "may be the answer, or rate it", "name it in columns.completion, or remove rows with bad answers"
)
_SPLIT: Final = Meaning("may be the split of the row", "set split.column to keep your splits")
_REASONING: Final = Meaning(
    "may be the reasoning before the answer",
    "write it into the answer in the form of the base model's chat template to learn it",
)
_MEDIA: Final = Meaning(
    "may be a part of the input that is not text", "remove rows whose answers depend on it"
)

_NAMES: Final[Mapping[Meaning, tuple[str, ...]]] = {
    _SYSTEM: ("system", "system_prompt", "system_message"),
    _PREFERENCE: ("chosen", "rejected", "rejected_response"),
    _PROMPT: ("context", "history", "input"),
    _LEARNING: ("train", "training", "train_detail", "weight", "loss", "loss_weight"),
    _RATING: ("rating", "score", "feedback", "vote", "reward"),
    _ANSWER: ("answer",),
    _SPLIT: ("split",),
    _REASONING: ("reasoning", "reasoning_content", "thinking"),
    _MEDIA: ("image", "images", "audio", "audios", "video", "videos"),
}


def _spellings(name: str) -> set[str]:
    first, *others = name.split("_")
    return {name, name.upper(), name.capitalize(), first + "".join(map(str.capitalize, others))}


MEANINGS: Final[Mapping[str, Meaning]] = {
    spelling: meaning for meaning, names in _NAMES.items() for name in names for spelling in _spellings(name)
}
"""The meaning of each name, in the usual spellings: `reasoning_content`, `Reasoning_content`,
`REASONING_CONTENT`, `reasoningContent`."""


def meaning_of(path: str) -> Meaning | None:
    """The meaning of an unused field by the last part of its path, such as `messages[].thinking`."""
    return MEANINGS.get(path.rpartition("[].")[2].removeprefix("input."))


_QUESTIONS: Final = (
    *("message", "text", "body", "ticket", "description", "comment", "review", "sentence", "utterance"),
    *(
        "email",
        "content",
        "request",
        "question",
        "query",
        "instruction",
        "input",
        "prompt",
        "title",
        "subject",
    ),
)
_ANSWERS: Final = (
    *("answer", "response", "reply", "completion", "output", "target"),
    *("label", "team", "category", "class", "intent", "topic", "sentiment", "department", "queue", "tag"),
)
PAIRS: Final = (
    ("question", "answer"),
    ("query", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "output"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
    ("user", "assistant"),
    ("text", "label"),
    ("text", "summary"),
    ("document", "summary"),
    *product(_QUESTIONS, _ANSWERS),
)
"""Usual names of a prompt and its completion that no format reads, the most specific first."""


CONTEXTS: Final = ("context", "input")
"""Names of another part of the prompt, before the question."""


def probable_names(names: Iterable[str]) -> FieldNames | None:
    """The columns of prompt and completion by usual names, in any case; None if none have such names."""
    present: dict[str, str] = {}
    for name in names:
        present.setdefault("_".join(name.lower().replace("-", " ").split()), name)
    for prompt, completion in PAIRS:
        if prompt not in present or completion not in present:
            continue
        context = next(
            (name for name in CONTEXTS if name in present and name not in (prompt, completion)), None
        )
        if context is not None:
            template = f"{{{present[context]}}} {{{present[prompt]}}}"
            return FieldNames(completion=present[completion], template=template)
        return FieldNames(
            prompt=None if present[prompt] == "prompt" else present[prompt], completion=present[completion]
        )
    return None


PLAIN_NAME: Final = re.compile(r"[A-Za-z_](?:[\w .-]*\w)?")
"""Texts that are the same text in a YAML list or object."""


def columns_block(names: FieldNames) -> str:
    """The fields of a Dataset that name these columns, as in its YAML."""
    columns = {each.name: getattr(names, each.name) for each in fields(names) if each.name != "template"}
    block = ", ".join(f"{role}: {_scalar(name)}" for role, name in columns.items() if name is not None)
    template = "" if names.template is None else f"template: {json.dumps(names.template)} and "
    return f"{template}columns: {{{block}}}"


def _scalar(name: str) -> str:
    return name if PLAIN_NAME.fullmatch(name) else json.dumps(name)


def mapped_columns(names: Iterable[str]) -> str | None:
    """How to map columns whose usual names show the prompt and the completion; None if none do."""
    found = probable_names(names)
    return None if found is None else columns_block(found)


LABELS: Final = {"true": True, "false": False, "1": True, "0": False}
KTO_TAG: Final = "kto_tag"
"""Name of the label in LLaMA-Factory."""
RATING_NAMES: Final = frozenset({KTO_TAG, "rating", "feedback", "vote"})
"""Names of fields, besides the label, in which all RATING_TEXTS, true, false, 1, 0 and -1 rate an answer."""
VERDICTS: Final = frozenset(
    {
        *("chosen", "rejected", "accepted", "accept", "reject", "desirable", "undesirable"),
        *("thumbs_up", "thumbs_down", "thumbs up", "thumbs down", "thumbsup", "thumbsdown", "👍", "👎"),
        *("upvote", "downvote", "upvoted", "downvoted", "liked", "disliked"),
    }
)
"""Texts that rate an answer in any field that is not read."""
RATING_TEXTS: Final = VERDICTS | {
    *("yes", "no", "y", "n", "good", "bad", "right", "wrong", "correct", "incorrect", "pass", "fail"),
    *("approved", "up", "down", "t", "f", "-1", "+1"),
}
"""Texts that usually rate an answer, other than true and false. KTO does not read them."""
MAX_RATING_CHARACTERS: Final = 16
PRODIGY_HASH: Final = "_task_hash"
"""Field of every example that Prodigy exports."""
PRODIGY_ANSWER: Final = "answer"
"""Field with the annotator's decision in an example of Prodigy: accept, reject or ignore."""


class AnswerRatings:
    """Finds the field that rates a record's answer."""

    def __init__(self, names: FieldNames) -> None:
        taken = {names.prompt, names.completion, names.messages, names.chosen, names.rejected}
        self.label = names.label or "label"
        self._labels = tuple(name for name in (self.label, KTO_TAG) if name not in taken)

    def is_kto(self, record: Fields) -> bool:
        """Whether the label is true or false, in any spelling that KTO reads."""
        return self.label in self._labels and label_of(record.get(self.label)) is not None

    def issue(self, record: Fields, form: DataFormat | None, is_read: Callable[[str], bool]) -> Issue | None:
        """Why the record's answer must not simply be learned; None if no field may rate it.

        `form` is the format to set for learning every answer, if it has one name. `is_read` tells whether
        the format reads a field.
        """
        for name in self._labels:
            if name in record and is_rating(record[name]):
                return _issue(name, record[name], form)
        is_prodigy = PRODIGY_HASH in record
        for name, value in record.items():
            if _may_rate(name, value) and not is_read(name) and not (is_prodigy and name == PRODIGY_ANSWER):
                return _issue(name, value, form)
        return None


def prodigy_rejection(record: Fields) -> Issue | None:
    """Why an example of Prodigy must not be learned; None if the annotator accepted it."""
    decision = record.get(PRODIGY_ANSWER)
    if decision not in ("reject", "ignore"):
        return None
    rejected = "rejected the example as wrong" if decision == "reject" else "skipped the example"
    return Issue(
        Code.FIELD_VALUE,
        f"{PRODIGY_ANSWER} is '{decision}': the annotator {rejected} in Prodigy",
        "accept",
        "remove the row, or set onInvalidRows: Drop to leave such rows out",
        column=PRODIGY_ANSWER,
    )


def label_of(value: Any) -> bool | None:
    """The truth value of a label, which tables write as a text, 0 or 1; None for another value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return value == 1
    return LABELS.get(value.strip().lower()) if isinstance(value, str) else None


def is_rating(value: Any) -> bool:
    """Whether the value of a label may rate an answer as good or bad."""
    if label_of(value) is not None:
        return True
    if isinstance(value, int) and value == -1:
        return True
    return isinstance(value, str) and value.strip().lower() in RATING_TEXTS


def _may_rate(name: str, value: Any) -> bool:
    if name.lower() in RATING_NAMES:
        return is_rating(value)
    return (
        isinstance(value, str) and len(value) <= MAX_RATING_CHARACTERS and value.strip().lower() in VERDICTS
    )


def _issue(name: str, value: Any, form: DataFormat | None) -> Issue:
    of_kto = "set format: KTO (columns.label names the label) to learn from good and bad answers"
    if label_of(value) is None:
        of_kto = f"remove rows with bad answers; or write true or false instead and {of_kto}"
    of_all = "set the format" if form is None else f"set format: {form}"
    return Issue(
        Code.FORMATS_MIXED,
        f"{name} is {_shown(value)}, which may rate the answer as good or bad",
        "no such field, or a format that defines its meaning",
        f"{of_kto}; or {of_all} to learn every answer",
        column=name,
    )


def _shown(value: Any) -> str:
    # The value is one of a few usual words and numbers, so it is not marked as a quotation.
    return str(value).lower() if isinstance(value, bool) else repr(value)
