# SPDX-License-Identifier: Apache-2.0
"""The blocks of commands in the documentation, with the comments that mark them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.md")),
]
BLOCK: Final = re.compile(
    r"(?:^ *<!-- (?P<marker>[^\n]*) -->\n)?^(?P<indent> *)```(?:console|sh)\n(?P<text>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A block of commands; `marker` is the comment in the line above it."""

    page: Path
    marker: str | None
    text: str


def blocks() -> Iterator[Block]:
    """All blocks of all pages."""
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text()):
            yield Block(page, found["marker"], found["text"])
