# SPDX-License-Identifier: Apache-2.0
"""Split of a row. This rule never changes: it keeps training rows out of the test split for ever.

The fraction of a row is the first 8 bytes, big-endian, of SHA-256 over this canonical JSON (UTF-8, no spaces,
sorted keys), divided by 2^64, so that it lies in [0, 1):

    ["v1", seed, "prompt", text]               a prompt; for preferences and KTO if it is one user turn
    ["v1", seed, "messages", [{…}, …]]         a chat: `role` and `content` of every turn before the last, and
                                               `tool_calls` and `tool_call_id` of the turns that have them
    ["v1", seed, "group", value]               with groupBy: the value of that column

Below `test` the row is a test row, below `test + validation` a validation row, otherwise a training row.
Line ends in texts are LF before they are hashed. So equal inputs (with groupBy: rows of one group) are always
in the same split, new rows move no existing row, and neither the order of rows nor line ends matter.
The row is hashed before any cleaning. Rows with a split of the team's own keep it.
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
    """The row's split; the team's own, if the row has one."""
    if raw.split is not None:
        return raw.split
    fraction = fraction_of(raw, division.seed)
    if fraction < division.test:
        return "test"
    if fraction < division.test + division.validation:
        return "validation"
    return "train"


def fraction_of(raw: RawRow, seed: int) -> float:
    """The row's fraction in [0, 1)."""
    content = hashlib.sha256(_subject(raw, seed))
    return int.from_bytes(content.digest()[:8], "big") / 2**64


def _subject(raw: RawRow, seed: int) -> bytes:
    """Canonical JSON of what determines the split."""
    if raw.group is not None:
        return canonical.encode([RULE, seed, "group", raw.group])
    row, turns = raw.row, raw.row.input
    if row.form != "ChatMessages" and len(turns) == 1 and turns[0].role == "user":
        # orjson writes a text like `canonical`.
        return b'["%b",%d,"prompt",%b]' % (RULE.encode(), seed, orjson.dumps(turns[0].content))
    return canonical.encode([RULE, seed, "messages", [_turn(message) for message in turns]])


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls is not None:
        turn["tool_calls"] = json.loads(message.tool_calls)
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn
