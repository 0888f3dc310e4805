# SPDX-License-Identifier: Apache-2.0
"""Names of fields that have a meaning for training.

If nothing reads such a field, a warning names it. If a file has no field that a format reads, its usual names
of questions and answers say how to map them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final


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
)
"""Usual names of a prompt and its completion that no format reads, the most specific first."""


CONTEXTS: Final = ("context", "input")
"""Names of another part of the prompt, before the question."""


def mapped_columns(names: Iterable[str]) -> str | None:
    """How to map columns whose usual names show the prompt and the completion; None if none do."""
    present = {name.lower(): name for name in names}
    for prompt, completion in PAIRS:
        if prompt not in present or completion not in present:
            continue
        parts = [f"columns.completion: {present[completion]}"]
        context = next((name for name in CONTEXTS if name in present and name != prompt), None)
        if context is not None:
            parts.insert(0, f'template: "{{{present[context]}}} {{{present[prompt]}}}"')
        elif present[prompt] != "prompt":
            parts.insert(0, f"columns.prompt: {present[prompt]}")
        return " and ".join(parts)
    return None
