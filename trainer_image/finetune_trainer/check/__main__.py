"""`finetune-check FILE…`: are these rows fit to train on?"""

import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import typer

from finetune_trainer.check.commandline import division, field_names, region
from finetune_trainer.check.outputs import require_room, write
from finetune_trainer.check.sources import NotFound, find_files
from finetune_trainer.contract.dataset import Checks, Cleaning
from finetune_trainer.contract.vocabulary import RULE_VERSION, DataFormat, Finding, NearDuplicates, SplitName
from finetune_trainer.data.files import FileUnreadable, SourceFile
from finetune_trainer.data.options import OLDEST_RULE, Recipe
from finetune_trainer.data.unpacking import TooLarge
from finetune_trainer.rows import SPLIT_FILES

if TYPE_CHECKING:
    from finetune_trainer.report.document import Document

WARNINGS: Final = 1
INVALID: Final = 2
FAULT: Final = 3
"""Of this program: an exception that nobody thought of."""

CLEANING: Final = Cleaning()
CHECKS: Final = Checks()
"""The defaults of the options."""

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
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="A file, a folder, or a pattern in quotes; .gz and .zst too."),
    ],
    *,
    format_: Annotated[
        DataFormat | None,
        typer.Option(
            "--format",
            case_sensitive=False,
            metavar="FORMAT",
            help=f"Found by the content where it is not given: {', '.join(get_args(DataFormat))}.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        _column("Which column holds what, as prompt=text,completion=label.", "NAME=COLUMN,…"),
    ] = None,
    prompt: Annotated[str | None, _column("Of the prompt.")] = None,
    completion: Annotated[str | None, _column("Of the completion.")] = None,
    messages: Annotated[str | None, _column("Of the chat's messages.")] = None,
    chosen: Annotated[str | None, _column("Of the better answer.")] = None,
    rejected: Annotated[str | None, _column("Of the worse answer.")] = None,
    label: Annotated[str | None, _column("Says whether the answer is a good one (KTO).")] = None,
    template: Annotated[
        str | None,
        _column(r"The prompt, with {column} for each column that it takes; \n is a line end.", "TEXT"),
    ] = None,
    validation: Annotated[
        float, _split("Of the rows, for validation.", min=0, max=1, metavar="FRACTION")
    ] = 0.1,
    test: Annotated[
        float, _split("Of the rows, held out for evaluation.", min=0, max=1, metavar="FRACTION")
    ] = 0.1,
    seed: Annotated[
        int, _split("Another seed makes another division.", min=0, max=2147483647, metavar="NUMBER")
    ] = 0,
    group_by: Annotated[
        str | None, _split("Rows with the same value in it land in the same split.", metavar="COLUMN")
    ] = None,
    split_column: Annotated[str | None, _split("Says train, validation or test.", metavar="COLUMN")] = None,
    split_from_files: Annotated[
        bool,
        typer.Option(
            "--split-from-files",
            help="The files' names say it: train.jsonl, validation.jsonl, test.jsonl.",
            rich_help_panel="Splits",
        ),
    ] = False,
    rule_version: Annotated[
        int,
        _split(
            "Of reading and comparing rows; an older Dataset may keep an older one.",
            min=OLDEST_RULE,
            max=RULE_VERSION,
            metavar="NUMBER",
        ),
    ] = RULE_VERSION,
    normalize_whitespace: Annotated[
        bool, _cleaning("--normalize-whitespace", text="Make white space uniform.")
    ] = False,
    normalize_unicode: Annotated[
        bool, _cleaning("--normalize-unicode", text="Give equal characters one spelling.")
    ] = False,
    near_duplicates: Annotated[
        NearDuplicates,
        _cleaning(
            text="What becomes of rows that are nearly the same.",
            case_sensitive=False,
            metavar="|".join(get_args(NearDuplicates)),
        ),
    ] = CLEANING.near_duplicates,
    secrets: Annotated[Finding, _check("Keys, tokens, passwords.")] = CHECKS.secrets,
    email_addresses: Annotated[Finding, _check("Anybody's.")] = CHECKS.email_addresses,
    payment_cards: Annotated[Finding, _check("Numbers that pass the Luhn check.")] = CHECKS.payment_cards,
    ibans: Annotated[Finding, _check("Bank accounts.")] = CHECKS.ibans,
    phone_numbers: Annotated[Finding, _check("In any usual spelling.")] = CHECKS.phone_numbers,
    phone_region: Annotated[
        str | None,
        typer.Option(
            metavar="COUNTRY",
            help="Of numbers without a country code, in two letters such as DE.",
            rich_help_panel="Secrets and personal data",
        ),
    ] = None,
    problems: Annotated[int, _output("How many are listed here.", min=0, metavar="NUMBER")] = 20,
    report: Annotated[
        Path | None, _output("Write the report as JSON.", dir_okay=False, metavar="FILE")
    ] = None,
    html: Annotated[
        Path | None, _output("Write the report as a page.", dir_okay=False, metavar="FILE")
    ] = None,
    output: Annotated[
        Path | None,
        _output(
            f"Write the prepared rows: {', '.join(SPLIT_FILES.values())}.", file_okay=False, metavar="FOLDER"
        ),
    ] = None,
) -> None:
    """Check rows as the cluster does, without a cluster: the format, every bad row, duplicates, splits.

    Exit code 0: clean. 1: warnings only. 2: rows or files that cannot be used, or wrong options.
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
            rule_version=rule_version,
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
    )
    try:
        sources = find_files(files)
        require_room(sources, report, html, output)
        found = _prepared(sources, recipe, " ".join(files), output)
        write(found, report, html)
    except (NotFound, TooLarge, FileUnreadable) as error:
        _end(str(error))
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    _show(found, problems, report, html, output)
    raise typer.Exit(INVALID if found["errorCount"] else WARNINGS if found["warningCount"] else 0)


def main() -> None:
    """The console script. What it did not foresee is told from warnings by its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Rows may have characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    # Ends as an error does, so that the copy of the rows goes with it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app(prog_name="finetune-check")
    except Exception:
        logger.exception("finetune-check failed; please report it, with what follows")
        sys.exit(FAULT)


def _prepared(sources: Sequence[SourceFile], recipe: Recipe, source: str, output: Path | None) -> "Document":
    """The report; the rows are in `output` then. Raises FileUnreadable, OSError."""
    from finetune_trainer.check.progressbar import progress
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
    """What the store calls these rows, and their files."""
    from finetune_trainer.manifest import Manifest

    manifest = Manifest.of(folder, SPLIT_FILES.values())
    by_path = {file.path: f"sha256:{file.sha256}" for file in manifest.files}
    return manifest.digest, {split: by_path[name] for split, name in SPLIT_FILES.items()}


def _show(
    found: "Document", problems: int, report: Path | None, html: Path | None, output: Path | None
) -> None:
    from rich.console import Console

    from finetune_trainer.check.show import show

    console = Console(highlight=False)
    show(found, console, problems)
    for what, path in (("report", report), ("page", html), ("rows", output)):
        if path is not None:
            console.print(f"{what} in {path}", markup=False, soft_wrap=True)


def _end(message: str) -> None:
    typer.echo(f"finetune-check: {message}", err=True)
    raise typer.Exit(INVALID)


if __name__ == "__main__":
    main()
