"""Which split a row lands in. This rule never changes: it keeps training rows out of the test split for ever.

The fraction of a row is the first 8 bytes, big-endian, of SHA-256 over this canonical JSON (UTF-8, no spaces,
sorted keys), divided by 2^64, so that it lies in [0, 1):

    ["v1", seed, "prompt", text]               a prompt; of preferences and KTO if it is one user turn
    ["v1", seed, "messages", [{…}, …]]         a chat: `role` and `content` of every turn before the last, and
                                               `tool_calls` and `tool_call_id` of the turns that have them
    ["v1", seed, "group", value]               with groupBy: the value of that column

Below `test` the row is a test row, below `test + validation` a validation row, otherwise a training row.
Line ends in texts are LF before they are hashed. So the same input never lands in two splits (with groupBy:
the same group), more rows move no row, and neither the order of rows nor the file's line ends matter.
It is taken from the row as it came, before any cleaning. Rows that the team divided itself stay where it put
them.
"""

import hashlib
import json
from typing import Any, Final

import orjson

from finetune_trainer import canonical
from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.rows import Message

RULE: Final = "v1"


def split_of(raw: RawRow, division: Split) -> SplitName:
    """The row's split: the team's own, where it divided the rows."""
    if raw.split is not None:
        return raw.split
    fraction = fraction_of(raw, division.seed)
    if fraction < division.test:
        return "test"
    if fraction < division.test + division.validation:
        return "validation"
    return "train"


def fraction_of(raw: RawRow, seed: int) -> float:
    """The row's place in [0, 1)."""
    content = hashlib.sha256(_subject(raw, seed))
    return int.from_bytes(content.digest()[:8], "big") / 2**64


def _subject(raw: RawRow, seed: int) -> bytes:
    """The canonical JSON of what the split hangs on."""
    if raw.group is not None:
        return canonical.encode([RULE, seed, "group", raw.group])
    row, turns = raw.row, raw.row.input
    if row.form != "ChatMessages" and len(turns) == 1 and turns[0].role == "user":
        # orjson writes a text as `canonical` does.
        return b'["%b",%d,"prompt",%b]' % (RULE.encode(), seed, orjson.dumps(turns[0].content))
    return canonical.encode([RULE, seed, "messages", [_turn(message) for message in turns]])


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls is not None:
        turn["tool_calls"] = json.loads(message.tool_calls)
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn
