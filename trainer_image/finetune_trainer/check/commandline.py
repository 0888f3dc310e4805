# SPDX-License-Identifier: Apache-2.0
"""Turn command line options into parts of a recipe. Errors name the option."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import typer

from finetune_trainer.contract.dataset import Split
from finetune_trainer.data.recipe import FieldNames, PromptTemplate

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
