# SPDX-License-Identifier: Apache-2.0
"""Find the files that the user names: single files, folders and patterns."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from finetune_trainer.beneath import kind_of, names_in
from finetune_trainer.data.files import COMPRESSED_SUFFIXES, ENDINGS, SourceFile, is_data, unpacking_budget

MAX_NAMES_IN_MESSAGE: Final = 10


class NotFound(Exception):
    """A file was not found. The message says what to do."""


def find_files(arguments: Sequence[str]) -> list[SourceFile]:
    """Each file once, sorted by name as in the cluster.

    Files of the same name in several folders keep their folders in their names. Raises NotFound, OSError.
    """
    found = [pair for argument in arguments for pair in _matching(argument)]
    roots = {path.resolve(): (path, root) for path, root in found}
    names = [path.name for path, _ in roots.values()]
    budget = unpacking_budget()
    files = [
        SourceFile(
            path, path.name if names.count(path.name) == 1 else path.as_posix(), root=root, budget=budget
        )
        for path, root in roots.values()
    ]
    return sorted(files, key=lambda file: file.name)


def _matching(argument: str) -> Iterator[tuple[Path, Path | None]]:
    """Each file, and the folder beneath which it must be; None for a file that the user named."""
    if argument == "-":
        raise NotFound("standard input can be read only once, but rows are read twice; save them to a file")
    path = Path(argument)
    if path.is_dir():
        yield from ((file, path) for file in _data_files(path))
    elif path.exists():
        yield path, None
    elif glob.has_magic(argument):
        found = [Path(name) for name in glob.glob(argument, recursive=True)]  # noqa: PTH207
        files = [file for file in found if file.is_file()]
        if not files:
            raise NotFound(f"{argument}: no file matches; correct the pattern")
        yield from ((file, None) for file in files)
    else:
        raise NotFound(f"{argument}: not found; {_alternatives(path)}correct the name")


def _data_files(folder: Path) -> list[Path]:
    names = [name for name in names_in(folder, folder, with_folders=False) if is_data(name)]
    files = [folder / name for name in names if kind_of(folder / name, folder) == "File"]
    if not files:
        compressed = " ".join(sorted(COMPRESSED_SUFFIXES))
        raise NotFound(
            f"{folder}: the folder has no file with a supported extension ({ENDINGS}, compressed:"
            f" {compressed}); add rows, or name a file"
        )
    return files


def _alternatives(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either; "
    names = sorted(entry.name for entry in path.parent.iterdir() if is_data(entry.name))
    return f"the folder has: {', '.join(names[:MAX_NAMES_IN_MESSAGE])}; " if names else ""
