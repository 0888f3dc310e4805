# SPDX-License-Identifier: Apache-2.0
"""Splits of a dataset: the rule that assigns each row to one, and a file per split with one row per line.

The rule never changes: it keeps training rows out of the test split for ever. The fraction of a row is the
first 8 bytes, big-endian, of SHA-256 over this canonical JSON (UTF-8, no spaces, sorted keys), divided by
2^64, so that it lies in [0, 1):

    ["v1", seed, "prompt", text]               a prompt; for preferences and KTO if it is one user turn
    ["v1", seed, "messages", [{…}, …]]         a chat: `role` and `content` of every turn before the last, and
                                               `tool_calls` and `tool_call_id` of the turns that have them
    ["v1", seed, "group", value]               with groupBy: the value of that column

Below `test` the row is a test row, below `test + validation` a validation row, otherwise a training row. Line
ends in texts are LF before they are hashed. So equal inputs (with groupBy: rows of one group) are always in
the same split, new rows move no existing row, and neither the order of rows nor line ends matter. The row is
hashed before any cleaning. Rows with a split of the team's own keep it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import orjson

from finetune_trainer import canonical_json
from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.files import Budget
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.row_index import SPLITS
from finetune_trainer.rows import SPLIT_FILES, Message, Row, parse_row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
        return canonical_json.encode([RULE, seed, "group", raw.group])
    row, turns = raw.row, raw.row.input
    if row.form != "ChatMessages" and len(turns) == 1 and turns[0].role == "user":
        # orjson writes a text like `canonical_json`.
        return b'["%b",%d,"prompt",%b]' % (RULE.encode(), seed, orjson.dumps(turns[0].content))
    return canonical_json.encode([RULE, seed, "messages", [_turn(message) for message in turns]])


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls is not None:
        turn["tool_calls"] = json.loads(message.tool_calls)
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


class SplitWriter:
    """Creates the files of all splits and writes rows to them, up to `limit_bytes` in total.

    Raises OSError.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self._budget = Budget("the prepared rows", limit_bytes)
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context((folder / file).open("wb")) for name, file in SPLIT_FILES.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, split: SplitName, lines: bytes | bytearray) -> None:
        """Append the lines of some rows. Raises TooLarge."""
        self._budget.use(len(lines))
        self._files[split].write(lines)


def line_of(row: Row) -> bytes:
    """The row's line with its line end. For plain texts, orjson writes the same as `canonical_json`."""
    if row.form == "PromptCompletion" and not row.columns:
        pair = {"completion": row.output, "prompt": row.messages[0].content}
        return orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE)
    if row.tools is None and all(message.tool_calls is None for message in row.messages):
        return orjson.dumps(row.to_dict(), option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    return f"{row.to_line()}\n".encode()


def read_rows(
    folder: Path, splits: "NDArray[np.uint8]", wanted: "NDArray[np.bool_]"
) -> Iterator[tuple[int, Row]]:
    """The selected rows with their numbers in the order of writing, split by split. Raises OSError.

    `splits` has the split number of every row.
    """
    import numpy as np

    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(splits == number)
        if not wanted[rows].any():
            continue
        with (folder / SPLIT_FILES[name]).open(encoding="utf-8", newline="\n") as lines:
            for row, is_wanted, line in zip(rows.tolist(), wanted[rows].tolist(), lines, strict=True):
                if is_wanted:
                    yield row, parse_row(line)


def keep_rows(folder: Path, splits: "NDArray[np.uint8]", keep: "NDArray[np.bool_]") -> dict[SplitName, int]:
    """Remove all other rows from the files, and return the number of rows per split. Raises OSError.

    `splits` has the split number of every row and `keep` whether to keep it, both in the order of writing.
    A file without changes is not rewritten. Each file is replaced atomically.
    """
    rows: dict[SplitName, int] = {}
    for number, name in enumerate(SPLITS):
        kept = keep[splits == number]
        rows[name] = int(kept.sum())
        if rows[name] < len(kept):
            _rewrite(folder / SPLIT_FILES[name], kept.tobytes())
    return rows


def _rewrite(path: Path, kept: bytes) -> None:
    """`kept` has 1 for each line to keep, and 0 for each line to remove."""
    part = path.with_name(f".{path.name}.part")
    with path.open("rb") as lines, part.open("wb") as output:
        output.writelines(line for line, is_kept in zip(lines, kept, strict=True) if is_kept)
    part.replace(path)
