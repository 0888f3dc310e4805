"""Which split a row lands in. This rule never changes: it keeps training rows out of the test split for ever.

The fraction of a row is the first 8 bytes, big-endian, of SHA-256 over this canonical JSON (UTF-8, no spaces,
sorted keys), divided by 2^64, so that it lies in [0, 1):

    ["v1", seed, "prompt", text]               a prompt with its completion
    ["v1", seed, "messages", [{…}, …]]         a chat: `role` and `content` of every turn before the last
    ["v1", seed, "group", value]               with groupBy: the value of that column

Below `test` the row is a test row, below `test + validation` a validation row, otherwise a training row.
Line ends in texts are LF before they are hashed. So the same input never lands in two splits (with groupBy:
the same group), more rows move no row, and neither the order of rows nor the file's line ends matter.
It is taken from the row as it came, before any cleaning.
"""

import hashlib
from typing import Final

from finetune_trainer import canonical
from finetune_trainer.contract import Split
from finetune_trainer.rows import Row, SplitName

RULE: Final = "v1"
Group = str | int


def split_of(row: Row, group: Group | None, split: Split) -> SplitName:
    """The row's split; `group` is the value of the groupBy column, None without one."""
    fraction = fraction_of(row, group, split.seed)
    if fraction < split.test:
        return "test"
    if fraction < split.test + split.validation:
        return "validation"
    return "train"


def fraction_of(row: Row, group: Group | None, seed: int) -> float:
    """The row's place in [0, 1)."""
    subject: list[object]
    if group is not None:
        subject = ["group", group]
    elif row.form == "PromptCompletion":
        subject = ["prompt", row.messages[0].content]
    else:
        subject = ["messages", [message.to_dict() for message in row.input]]
    content = hashlib.sha256(canonical.encode([RULE, seed, *subject]))
    return int.from_bytes(content.digest()[:8], "big") / 2**64
