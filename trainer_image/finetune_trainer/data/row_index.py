# SPDX-License-Identifier: Apache-2.0
"""Index of all rows: digests and numbers, 78 bytes per row.

Rows are numbered from 0 in the order in which they are added and written.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from finetune_trainer import canonical_json
from finetune_trainer.contract.vocabulary import RowForm, SplitName
from finetune_trainer.data.row_problems import normalize_visible
from finetune_trainer.rows import SPLIT_FILES, Message, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


SPLITS: Final[tuple[SplitName, ...]] = tuple(SPLIT_FILES)
"""Splits in the order of their numbers. Of equal rows, the one in the split with the highest number stays."""
SPLIT_NUMBERS: Final = {name: number for number, name in enumerate(SPLITS)}

MAX_LABELS: Final = 50
"""Maximum number of distinct completions that count as labels."""
MAX_LABEL_CHARACTERS: Final = 200

ENTRY: Final = struct.Struct("<16s8s8s8s8s4sIBBIIII")
FIELDS: Final = [
    ("input", "<u8", 2),
    ("answer", "<u8"),
    ("completion", "<u8"),
    ("visible_input", "<u8"),
    ("group", "<u8"),
    ("visible_answer", "<u4"),
    ("subject", "<u4"),
    ("label", "u1"),
    ("split", "u1"),
    ("file", "<u4"),
    ("record", "<u4"),
    ("prompt_characters", "<u4"),
    ("completion_characters", "<u4"),
]
"""Columns of the index, mostly truncated SHA-256 digests.

`input` (16 bytes: all that the model sees before it answers) and `answer` (8 bytes: the rest) identify a row.
`completion` covers only the text and the tool calls of the last turn. `visible_input` and `visible_answer`
cover the texts as a reader sees them, without case, without marks at the ends of the input's words and
without whitespace in the answer.
`group` is the digest of the value of split.groupBy as text, because a number in one source can be a text in
another; 0 without it.
Rows with the same input and `subject` and a different answer conflict. `label` is 1 + KTO's label, or 0
without a label.
"""

OPENING_MARKS: Final = "\"'“”„‘’‚«»¿¡"
CLOSING_MARKS: Final = OPENING_MARKS + ".,;:!?…。、।؟"
"""Marks of sentences. Other punctuation and symbols can be all that distinguishes formulas or code."""

# Valid rows have no control characters.
PART: Final = "\x1f"
NONE: Final = "\x1e"


PAIR_BEGIN: Final = PART.join(("user", ""))
PAIR_MIDDLE: Final = PART.join(("", NONE))
PAIR_END: Final = PART.join(("", NONE, NONE, "None", "11"))
"""Constant parts of the digested text of a pair: around its prompt, and after its answer."""


class RowIndex:
    """Index that grows row by row; read `table` when it is complete."""

    def __init__(self) -> None:
        self._entries = bytearray()
        self._labels: dict[bytes, str] = {}
        self.form: RowForm | None = None
        """Form of the rows; None before the first row."""

    def __len__(self) -> int:
        return len(self._entries) // ENTRY.size

    def add(
        self,
        row: Row,
        split: SplitName,
        file: int,
        record: int,
        *,
        shown: str | None = None,
        group: str | int | None = None,
    ) -> None:
        """Add a row with its split, the number of its file from 0 and of its record from 1.

        `shown` is the text that reports show instead of the completion; `group` is the value of the column
        whose rows are together in one split.
        """
        self.form = row.form
        output, contents = row.output, [message.content for message in row.input]
        text = completion_of(row.messages[-1])
        completion = hashlib.sha256(text.encode()).digest()[:8]
        if len(self._labels) <= MAX_LABELS and completion not in self._labels:
            self._labels[completion] = _shortened(text if shown is None else shown)
        self._entries += ENTRY.pack(
            input_digest(row),
            answer_digest(row),
            completion,
            input_digest(row, list(map(_unmarked, contents))),
            bytes(8) if group is None else hashlib.sha256(str(group).encode()).digest()[:8],
            visible_answer_digest(row),
            _subject(row, completion),
            0 if row.label is None else 1 + row.label,
            SPLIT_NUMBERS[split],
            file,
            record,
            sum(map(len, contents)),
            len(output),
        )

    def extend(self, other: "RowIndex") -> None:
        """Append the rows of another index."""
        self.form = other.form or self.form
        self._entries += other._entries
        for completion, text in other._labels.items():
            if len(self._labels) <= MAX_LABELS:
                self._labels.setdefault(completion, text)

    @property
    def table(self) -> "NDArray[np.void]":
        """One record per row, with FIELDS. No row can be added while the table is in use."""
        import numpy as np

        return np.frombuffer(self._entries, dtype=FIELDS)

    def label(self, completion: int) -> str | None:
        """The text of a completion by its digest; None unless it is among the first 51 distinct ones."""
        return self._labels.get(completion.to_bytes(8, "little"))


def completion_of(turn: Message) -> str:
    """The last turn of a row as one text: its content, then its tool calls in canonical form."""
    if turn.tool_calls is None:
        return turn.content
    return "\n".join(filter(None, (turn.content, canonical_json.canonicalize(turn.tool_calls))))


def input_digest(row: Row, contents: Sequence[str] | None = None) -> bytes:
    """16-byte digest of all that the model sees: every turn before the last, and the tools.

    `contents` replaces the contents of these turns.
    """
    if row.form == "PromptCompletion":
        # The same as below in a third of the time.
        prompt = row.messages[0].content if contents is None else contents[0]
        return hashlib.sha256(f"{PAIR_BEGIN}{prompt}{PAIR_MIDDLE}".encode()).digest()[:16]
    parts: list[str] = []
    for number, message in enumerate(row.input):
        parts += _input_parts(message, message.content if contents is None else contents[number])
    parts.append(NONE if row.tools is None else _sorted_tools(row.tools))
    return hashlib.sha256(PART.join(parts).encode()).digest()[:16]


def answer_digest(row: Row, form: Callable[[str], str] = str) -> bytes:
    """8-byte digest of what is learned: the answer, converted by `form`, and how it is learned."""
    if row.form == "PromptCompletion":
        # The same as below in a third of the time.
        return hashlib.sha256(f"{form(row.output)}{PAIR_END}".encode()).digest()[:8]
    parts = [
        form(row.output),
        _calls(row.messages[-1]),
        form(row.rejected or NONE),
        str(row.label),
        "".join("01"[message.learned] for message in row.messages),
    ]
    return hashlib.sha256(PART.join(parts).encode()).digest()[:8]


def visible_answer_digest(row: Row) -> bytes:
    """8-byte digest of what is learned as a reader sees it, regardless of case and whitespace."""
    return answer_digest(row, _without_blanks)


def groups(*keys: "NDArray[Any]") -> "NDArray[np.int32]":
    """The number of each row's group, from 0. Rows with equal keys are one group."""
    import numpy as np

    order = np.lexsort(keys)
    begins = np.zeros(len(order), dtype=bool)
    for key in keys:
        in_order = key[order]
        begins[1:] |= in_order[1:] != in_order[:-1]
    numbers = np.empty(len(order), dtype=np.int32)
    numbers[order] = np.cumsum(begins, dtype=np.int32)
    return numbers


def fold_text(text: str) -> str:
    """The text as a reader sees it, with case folded."""
    return normalize_visible(text).casefold()


def _unmarked(text: str) -> str:
    """The folded text without punctuation at the ends of words, unless it has nothing else."""
    text = fold_text(text)
    # Most words have no punctuation, and the first check of them is fast.
    words = [
        word if word.isalnum() else word.rstrip(CLOSING_MARKS).lstrip(OPENING_MARKS) for word in text.split()
    ]
    return " ".join(filter(None, words)) or text


def _without_blanks(text: str) -> str:
    return fold_text(text).replace(" ", "")


def _subject(row: Row, completion: bytes) -> int:
    """Digest of the rated answers: KTO's, or a preference's two in either order; 0 for other forms."""
    if row.form == "KTO":
        return int.from_bytes(completion[:4], "little")
    if row.rejected is None:
        return 0
    rejected = hashlib.sha256(row.rejected.encode()).digest()
    return int.from_bytes(completion[:4], "little") ^ int.from_bytes(rejected[:4], "little")


def _input_parts(message: Message, content: str) -> tuple[str, ...]:
    if message.tool_calls is None and message.tool_call_id is None and message.name is None:
        return message.role, content
    return (
        message.role,
        content,
        _calls(message),
        message.tool_call_id or NONE,
        message.name or NONE,
    )


@lru_cache(maxsize=1)
def _sorted_tools(tools: str) -> str:
    """Tools in canonical form; cached, because consecutive rows often have the same."""
    return canonical_json.canonicalize(tools)


def _calls(message: Message) -> str:
    """Calls in canonical form: digests do not depend on the order of fields."""
    return NONE if message.tool_calls is None else canonical_json.canonicalize(message.tool_calls)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_LABEL_CHARACTERS else text[: MAX_LABEL_CHARACTERS - 1] + "…"
