# SPDX-License-Identifier: Apache-2.0
"""Names of fields that have a meaning for training. If nothing reads such a field, a warning names it."""

from collections.abc import Mapping
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
