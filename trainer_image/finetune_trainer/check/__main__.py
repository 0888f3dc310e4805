# SPDX-License-Identifier: Apache-2.0
"""`finetune-check FILE…`: check whether rows can be trained on."""

import logging
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import typer

from finetune_trainer.check.command_line import (
    NotFound,
    division,
    field_names,
    find_files,
    region,
    require_writable,
    write,
)
from finetune_trainer.contract.dataset import Checks, Cleaning
from finetune_trainer.contract.vocabulary import DataFormat, Finding, NearDuplicates, SplitName
from finetune_trainer.data.files import FileUnreadable, SourceFile, TooLarge
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.rows import SPLIT_FILES

if TYPE_CHECKING:
    from finetune_trainer.data.column_guess import ColumnGuess
    from finetune_trainer.report.document import Document

WARNINGS: Final = 1
INVALID: Final = 2
FAULT: Final = 3
"""Exit code for an unexpected exception in this program."""

CLEANING: Final = Cleaning()
CHECKS: Final = Checks()
"""Defaults of the options."""

logger = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _column(text: str, metavar: str = "COLUMN") -> Any:
    return typer.Option(metavar=metavar, help=text, rich_help_panel="Columns and fields")


def _split(text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="Splits", **settings)


def _cleaning(*names: str, text: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Cleaning", **settings)


def _check(text: str) -> Any:
    return typer.Option(
        case_sensitive=False,
        metavar="|".join(get_args(Finding)),
        help=text,
        rich_help_panel="Secrets and personal data",
    )


def _output(text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="Output", **settings)


@app.command(no_args_is_help=True)
def check(
    context: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="File, folder, or quoted pattern. Files may be compressed (.gz, .zst)."
        ),
    ],
    *,
    format_: Annotated[
        DataFormat | None,
        typer.Option(
            "--format",
            case_sensitive=False,
            metavar="FORMAT",
            help=f"Default: detected from the content. One of {', '.join(get_args(DataFormat))}.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        _column("Columns of the parts of a row, such as prompt=text,completion=label.", "NAME=COLUMN,…"),
    ] = None,
    prompt: Annotated[str | None, _column("Column of the prompt.")] = None,
    completion: Annotated[str | None, _column("Column of the completion.")] = None,
    messages: Annotated[str | None, _column("Column of the messages of a chat.")] = None,
    chosen: Annotated[str | None, _column("Column of the chosen answer.")] = None,
    rejected: Annotated[str | None, _column("Column of the rejected answer.")] = None,
    label: Annotated[str | None, _column("Column of the KTO label: whether the answer is good.")] = None,
    template: Annotated[
        str | None,
        _column(
            r"Template of the prompt, with {column} for a column's value and \n for a line break.", "TEXT"
        ),
    ] = None,
    keep_column: Annotated[
        list[str] | None, _column("Column to keep with each row. Repeat it for more columns.")
    ] = None,
    validation: Annotated[
        float, _split("Fraction of rows for validation.", min=0, max=1, metavar="FRACTION")
    ] = 0.1,
    test: Annotated[
        float, _split("Fraction of rows for the test split.", min=0, max=1, metavar="FRACTION")
    ] = 0.1,
    seed: Annotated[int, _split("Seed of the split.", min=0, max=2147483647, metavar="NUMBER")] = 0,
    group_by: Annotated[
        str | None, _split("Keep rows with the same value of this column in one split.", metavar="COLUMN")
    ] = None,
    split_column: Annotated[
        str | None, _split("Column with the values train, validation and test.", metavar="COLUMN")
    ] = None,
    split_from_files: Annotated[
        bool,
        typer.Option(
            "--split-from-files",
            help="Take the split from the file name: train.jsonl, validation.jsonl, test.jsonl.",
            rich_help_panel="Splits",
        ),
    ] = False,
    normalize_whitespace: Annotated[
        bool, _cleaning("--normalize-whitespace", text="Collapse runs of whitespace and trim texts.")
    ] = False,
    normalize_unicode: Annotated[
        bool,
        _cleaning(
            "--normalize-unicode",
            text="Normalize texts to Unicode NFC.",
        ),
    ] = False,
    near_duplicates: Annotated[
        NearDuplicates,
        _cleaning(
            text="Whether to search for nearly equal rows, and keep or remove them.",
            case_sensitive=False,
            metavar="|".join(get_args(NearDuplicates)),
        ),
    ] = CLEANING.near_duplicates,
    secrets: Annotated[Finding, _check("Keys, tokens and passwords.")] = CHECKS.secrets,
    email_addresses: Annotated[Finding, _check("E-mail addresses.")] = CHECKS.email_addresses,
    payment_cards: Annotated[
        Finding, _check("Card numbers that pass the Luhn check.")
    ] = CHECKS.payment_cards,
    ibans: Annotated[Finding, _check("International bank account numbers.")] = CHECKS.ibans,
    phone_numbers: Annotated[Finding, _check("Valid phone numbers.")] = CHECKS.phone_numbers,
    phone_region: Annotated[
        str | None,
        typer.Option(
            metavar="COUNTRY",
            help="Country of phone numbers without a country code, in two letters such as DE.",
            rich_help_panel="Secrets and personal data",
        ),
    ] = None,
    problems: Annotated[int, _output("Max problems to list.", min=0, metavar="NUMBER")] = 20,
    report: Annotated[
        Path | None, _output("Write the report as JSON to this file.", dir_okay=False, metavar="FILE")
    ] = None,
    html: Annotated[
        Path | None, _output("Write the report as an HTML page to this file.", dir_okay=False, metavar="FILE")
    ] = None,
    output: Annotated[
        Path | None,
        _output(
            f"Write the prepared rows to this folder: {', '.join(SPLIT_FILES.values())}.",
            file_okay=False,
            metavar="FOLDER",
        ),
    ] = None,
) -> None:
    """Check rows as the cluster does, without a cluster: format, invalid rows, duplicates, splits.

    Columns that no option names are guessed by their names, such as question and answer.

    Exit code 0: clean. 1: warnings only. 2: unusable rows or files, or invalid options.
    """
    columns_by_option = {
        "prompt": prompt,
        "completion": completion,
        "messages": messages,
        "chosen": chosen,
        "rejected": rejected,
        "label": label,
    }
    recipe = Recipe(
        format=format_,
        names=field_names(columns or (), columns_by_option, template),
        division=division(
            validation,
            test,
            seed,
            group_by,
            split_column,
            from_files=split_from_files,
        ),
        cleaning=Cleaning(
            normalize_whitespace=normalize_whitespace,
            normalize_unicode=normalize_unicode,
            near_duplicates=near_duplicates,
        ),
        checks=Checks(
            secrets=secrets,
            email_addresses=email_addresses,
            payment_cards=payment_cards,
            ibans=ibans,
            phone_numbers=phone_numbers,
            phone_region=region(phone_region),
        ),
        kept_columns=tuple(keep_column or ()),
    )
    try:
        sources = find_files(files)
        require_writable(sources, report, html, output)
        guess = _guess(sources[0], recipe)
        if guess is not None and guess.names is not None:
            recipe = replace(recipe, names=guess.names)
        found = _prepare(sources, recipe, " ".join(files), output)
        write(found, report, html)
    except (NotFound, TooLarge, FileUnreadable) as error:
        _end(str(error))
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    _show(found, guess, f"{context.command_path} {shlex.join(files)}", problems)
    _show_written(report, html, output)
    raise typer.Exit(INVALID if found["errorCount"] else WARNINGS if found["warningCount"] else 0)


def main() -> None:
    """The console script. An unexpected error has an exit code of its own."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Rows may contain characters that the terminal's encoding cannot represent.
            stream.reconfigure(errors="backslashreplace")
    # Exit through an exception, so that the temporary copy of the rows is removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app(prog_name="finetune-check")
    except Exception:
        logger.exception("finetune-check failed; please report this error with the traceback below")
        sys.exit(FAULT)


def _guess(source: SourceFile, recipe: Recipe) -> "ColumnGuess | None":
    from finetune_trainer.data.column_guess import guess_columns

    return guess_columns(source.unread(), recipe)


def _prepare(sources: Sequence[SourceFile], recipe: Recipe, source: str, output: Path | None) -> "Document":
    """Prepare the rows, write them to `output`, and return the report. Raises FileUnreadable, OSError."""
    from finetune_trainer.check.terminal import progress
    from finetune_trainer.data.pipeline import prepare
    from finetune_trainer.report.document import document

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".finetune-check-", dir=output) as name:
        folder = Path(name)
        with progress(sources) as listener:
            prepared = prepare(sources, recipe, folder, listener=listener)
        digest, split_digests = _digests(folder) if prepared.kept_rows else (None, None)
        found = document(prepared, source=source, digest=digest, split_digests=split_digests)
        if output is not None:
            for file in SPLIT_FILES.values():
                (folder / file).replace(output / file)
    return found


def _digests(folder: Path) -> tuple[str, dict[SplitName, str]]:
    """Digests of the rows and of their files, as in the store."""
    from finetune_trainer.manifest import Manifest

    manifest = Manifest.of(folder, SPLIT_FILES.values())
    by_path = {file.path: f"sha256:{file.sha256}" for file in manifest.files}
    return manifest.digest, {split: by_path[name] for split, name in SPLIT_FILES.items()}


def _show(found: "Document", guess: "ColumnGuess | None", command: str, problems: int) -> None:
    from rich.console import Console

    from finetune_trainer.check.terminal import show, show_guess, show_missing_guess

    console = Console(highlight=False)
    if guess is not None:
        show_guess(guess, console)
    show(found, console, problems)
    if guess is not None and guess.names is None:
        show_missing_guess(guess, console, command)


def _show_written(report: Path | None, html: Path | None, output: Path | None) -> None:
    for what, path in (("report", report), ("page", html), ("rows", output)):
        if path is not None:
            typer.echo(f"{what} written to {path}")


def _end(message: str) -> None:
    typer.echo(f"finetune-check: {message}", err=True)
    raise typer.Exit(INVALID)


if __name__ == "__main__":
    main()
