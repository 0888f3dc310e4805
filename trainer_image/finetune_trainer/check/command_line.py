# SPDX-License-Identifier: Apache-2.0
"""What the command line names: parts of a recipe, files to read, and files to write.

Errors name the option. The user names files to read as single files, folders and patterns. `finetune-check`
writes the other files in addition to the rows.
"""

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from finetune_trainer.contract.dataset import Split
from finetune_trainer.data.files import COMPRESSED_SUFFIXES, ENDINGS, SourceFile, is_data, unpacking_budget
from finetune_trainer.data.recipe import FieldNames, PromptTemplate
from finetune_trainer.rooted_open import kind_of, names_in
from finetune_trainer.rows import SPLIT_FILES

if TYPE_CHECKING:
    from finetune_trainer.report.document import Document


COLUMNS = tuple(field.name for field in fields(FieldNames) if field.name != "template")


def field_names(columns: Sequence[str], single: Mapping[str, str | None], template: str | None) -> FieldNames:
    """Field names from `--columns prompt=text,completion=label` and from the options of single columns.

    Raises typer.BadParameter.
    """
    names = {name: column for name, column in single.items() if column is not None}
    for name, column in map(_pair, (part for text in columns for part in text.split(","))):
        if name in names:
            raise _bad("--columns", f"{name} is set twice; set it once")
        names[name] = column
    if template is not None:
        template = template.replace(r"\n", "\n")
        if "prompt" in names:
            raise _bad("--template", "it replaces the column of the prompt; remove one of the two options")
        try:
            PromptTemplate.parse(template)
        except ValueError as error:
            raise _bad("--template", str(error)) from error
    taken: dict[str, str] = {}
    for name, column in names.items():
        if not column:
            raise _bad(f"--{name}", "the value is empty; name a column")
        if column in taken:
            raise _bad(f"--{name}", f"{taken[column]} and {name} are both {column!r}; name two columns")
        taken[column] = name
    return FieldNames(**names, template=template)


def division(
    validation: float,
    test: float,
    seed: int,
    group_by: str | None,
    column: str | None,
    *,
    from_files: bool,
) -> Split:
    """Settings of the split. Raises typer.BadParameter."""
    if validation + test >= 1:
        raise _bad(
            "--validation and --test",
            "their sum must be below 1, so that some rows are left for training; lower one of them",
        )
    given = "--split-column" if column is not None else "--split-from-files" if from_files else None
    if column is not None and from_files:
        raise _bad("--split-from-files", "--split-column already gives the splits; remove one of the two")
    if given and group_by is not None:
        raise _bad("--group-by", f"{given} already gives the splits; remove one of the two")
    return Split(
        validation=validation,
        test=test,
        seed=seed,
        group_by=group_by,
        column=column,
        from_files=from_files,
    )


def region(text: str | None) -> str | None:
    """Country code in capital letters. Raises typer.BadParameter."""
    if text is None:
        return None
    from phonenumbers import SUPPORTED_REGIONS

    if text.upper() not in SUPPORTED_REGIONS:
        raise _bad("--phone-region", f"{text!r} is not a country code; write two letters, such as DE")
    return text.upper()


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = (part.strip() for part in text.partition("="))
    if not equals or not column:
        raise _bad("--columns", f"{text!r} has no column; write it as prompt=COLUMN,completion=COLUMN")
    if name not in COLUMNS:
        raise _bad("--columns", f"{name!r} is not one of {', '.join(COLUMNS)}; correct it")
    return name, column


def _bad(option: str, message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=option)


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


def require_writable(
    sources: Sequence[SourceFile], report: Path | None, html: Path | None, output: Path | None
) -> None:
    """Check the output paths before any row is read. Raises typer.BadParameter."""
    inputs = {source.path.resolve() for source in sources}
    for option, path in (("--report", report), ("--html", html)):
        if path is not None and not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"the folder {path.parent} does not exist; create it", param_hint=option)
        if path is not None and path.resolve() in inputs:
            raise typer.BadParameter(f"{path} is an input file; name another file", param_hint=option)
        if path is not None:
            _require_writable(path, option)
    if output is not None and any((output / name).resolve() in inputs for name in SPLIT_FILES.values()):
        raise typer.BadParameter(f"{output} has input files; name another folder", param_hint="--output")


def _require_writable(path: Path, option: str) -> None:
    """Open the file for appending. An existing file keeps its content, a new file is removed again."""
    is_new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        text = f"{path} cannot be written ({error.strerror}); name another file"
        raise typer.BadParameter(text, param_hint=option) from error
    if is_new:
        path.unlink()


def write(found: "Document", report: Path | None, html: Path | None) -> None:
    """Write the report as JSON and as a page, if requested. Raises OSError."""
    from finetune_trainer.report.document import encode
    from finetune_trainer.report.html_page import page

    if report is not None:
        report.write_bytes(encode(found))
    if html is not None:
        html.write_text(page(found), encoding="utf-8")
