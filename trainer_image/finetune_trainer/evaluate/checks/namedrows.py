# SPDX-License-Identifier: Apache-2.0
"""Numbers of rows in a finding."""

from collections.abc import Sequence
from typing import Final

MAX_NAMED_ROWS: Final = 5


def named_rows(numbers: Sequence[int]) -> str:
    """List the first rows."""
    return ", ".join(map(str, numbers[:MAX_NAMED_ROWS])) + (" …" if len(numbers) > MAX_NAMED_ROWS else "")
