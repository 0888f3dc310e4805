# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.data.peer FILE FOLDER: a script as a team would write it with Hugging Face datasets.

It does less than a preparation: no search for near duplicates, secrets or personal data, and no report.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Final

import datasets

CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SPLITS: Final = ("train", "validation", "test")


def _usable(prompts: list[str], completions: list[str]) -> list[bool]:
    return [
        bool(prompt.strip() and completion.strip())
        and not CONTROL.search(prompt)
        and not CONTROL.search(completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _split(prompts: list[str]) -> dict[str, list[str]]:
    fractions = (
        int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64 for prompt in prompts
    )
    return {
        "split": ["test" if each < 0.1 else "validation" if each < 0.2 else "train" for each in fractions]
    }


def main(file: str, folder: Path) -> None:
    """Write the split files and print their number of rows."""
    seen: set[tuple[str, str]] = set()

    def is_new(prompts: list[str], completions: list[str]) -> list[bool]:
        found = []
        for row in zip(prompts, completions, strict=True):
            found.append(row not in seen)
            seen.add(row)
        return found

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=file, cache_dir=str(folder / "cache"), split="train")
    columns = ["prompt", "completion"]
    rows = rows.filter(_usable, batched=True, input_columns=columns)
    rows = rows.filter(is_new, batched=True, input_columns=columns, load_from_cache_file=False)
    rows = rows.map(_split, batched=True, input_columns=["prompt"])
    for name in SPLITS:
        part = rows.filter(
            lambda splits, name=name: [split == name for split in splits],
            batched=True,
            input_columns=["split"],
        )
        part.remove_columns("split").to_json(folder / f"{name}.jsonl", force_ascii=False)
    print(json.dumps({"rows": len(rows)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
