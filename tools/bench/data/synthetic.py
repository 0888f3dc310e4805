# SPDX-License-Identifier: Apache-2.0
"""Generate a JSON Lines file of synthetic rows of about 400 bytes; equal on every machine."""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import cache_directory

SYLLABLES: Final = (
    "an",
    "be",
    "cor",
    "del",
    "en",
    "fi",
    "gra",
    "in",
    "lo",
    "men",
    "or",
    "pa",
    "re",
    "sti",
    "ten",
    "u",
)
WORDS: Final = 4000
SENTENCES: Final = 5000
REPEATED: Final = 0.01
"""Share of rows that repeat the row before them."""


def rows_file(rows: int) -> Path:
    """Path of a file with `rows` rows; generated unless the cache has it."""
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    file = cache_directory() / "databench" / f"rows-{rows}-{made_by}.jsonl"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in file.parent.glob(f"rows-{rows}-*"):
            old.unlink()
        part = file.with_suffix(".part")
        with part.open("w", encoding="utf-8", newline="\n") as output:
            output.writelines(_lines(rows))
        part.rename(file)
    return file


def _lines(rows: int) -> Iterator[str]:
    chance = random.Random(0)  # noqa: S311
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 3))) for _ in range(WORDS)]
    sentences = [
        " ".join(chance.choices(words, k=chance.randint(12, 19))).capitalize() + "." for _ in range(SENTENCES)
    ]
    line = ""
    for number in range(rows):
        if not line or chance.random() >= REPEATED:
            first, second, third, answer = chance.choices(sentences, k=4)
            prompt = f"Order {number}: {first} {second}\n{third}"
            line = (
                json.dumps({"prompt": prompt, "completion": f"{answer} It is {chance.choice(words)}."}) + "\n"
            )
        yield line
