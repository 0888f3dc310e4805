# SPDX-License-Identifier: Apache-2.0
"""The blocks of commands in the documentation, with the comments that mark them, and the blocks of YAML."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "ROADMAP.md",
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


VARYING: Final = re.compile(r"\d+:\d\d|\d+ s\b|(?<=-)[0-9a-f]{4,}\b|\d+(?:\.\d+)?")
"""Numbers, names by content and times."""


def transcript(page: str, marker: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of the blocks of a page with this marker, and the lines that it prints."""
    for block in blocks():
        if block.page == ROOT / page and block.marker == marker:
            for step in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, *lines = step.splitlines()
                yield command, [line for line in lines if line.strip() != "…"]


def assert_prints(command: str, output: str, lines: Iterable[str]) -> None:
    """A command printed these lines in this order, others between them; what is VARYING may differ."""
    printed = iter([VARYING.sub("#", line.strip()) for line in output.splitlines()])
    for line in lines:
        assert VARYING.sub("#", line.strip()) in printed, (
            f"{command} does not print, or not in this order: {line}\n{output}"
        )


YAML_BLOCK: Final = re.compile(
    r"^(?P<indent> *)```yaml\n(?P<text>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE
)
HEREDOC: Final = re.compile(r"-f - <<'?YAML'?\n(?P<text>.*?)^YAML$", re.DOTALL | re.MULTILINE)


class Fragment(NamedTuple):
    """One YAML document of a page: an object, or a part of one."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fragments() -> Iterator[Fragment]:
    """Every YAML document of the blocks of YAML, and of those that commands read from a here-document."""
    for page in PAGES:
        text = page.read_text()
        for pattern in (YAML_BLOCK, HEREDOC):
            for block in pattern.finditer(text):
                line = text.count("\n", 0, block.start("text")) + 1
                for document in re.split(r"^(?= *---\n)", block["text"], flags=re.MULTILINE):
                    yield Fragment(page, line, document)
                    line += document.count("\n")
