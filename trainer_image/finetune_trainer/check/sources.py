"""The files that a person names: single ones, folders and globs."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune_trainer.data.files import COMPRESSED_SUFFIXES, ENDINGS, SourceFile, is_data


class NotFound(Exception):
    """There is no such file; the message says what to do."""


def find_files(arguments: Sequence[str]) -> list[SourceFile]:
    """Each file once, in the order of their names, which is the cluster's.

    Files of equal names in several folders keep their folders in their names. Raises NotFound, OSError.
    """
    paths = {path.resolve(): path for argument in arguments for path in _matching(argument)}
    names = [path.name for path in paths.values()]
    files = [
        SourceFile(path, path.name if names.count(path.name) == 1 else path.as_posix())
        for path in paths.values()
    ]
    return sorted(files, key=lambda file: file.name)


def _matching(argument: str) -> Iterator[Path]:
    path = Path(argument)
    if path.is_dir():
        yield from _inside(path)
    elif path.exists():
        yield path
    elif glob.has_magic(argument):
        found = [Path(name) for name in glob.glob(argument, recursive=True)]  # noqa: PTH207
        files = [file for file in found if file.is_file()]
        if not files:
            raise NotFound(f"{argument}: no file matches; correct the pattern")
        yield from files
    else:
        raise NotFound(f"{argument}: not found{_beside(path)}; correct the name")


def _inside(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.is_file() and is_data(path.name)]
    if not files:
        packed = " or ".join(sorted(COMPRESSED_SUFFIXES))
        raise NotFound(
            f"{folder}: the folder has no file that ends with one of {ENDINGS}, packed ({packed}) or not;"
            " add rows, or name a file"
        )
    return files


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor is the folder {path.parent}"
    there = sorted(entry.name for entry in path.parent.iterdir() if is_data(entry.name))
    return f"; there are: {', '.join(there[:10])}" if there else ""
