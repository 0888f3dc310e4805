"""The files that `finetune-check` writes besides the rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from finetune_trainer.data.files import SourceFile
from finetune_trainer.rows import SPLIT_FILES

if TYPE_CHECKING:
    from finetune_trainer.report.document import Document


def require_room(
    sources: Sequence[SourceFile], report: Path | None, html: Path | None, output: Path | None
) -> None:
    """Whatever would end in an error after all rows were read is said before."""
    read = {source.path.resolve() for source in sources}
    for option, path in (("--report", report), ("--html", html)):
        if path is not None and not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"the folder {path.parent} is not there; make it", param_hint=option)
        if path is not None and path.resolve() in read:
            raise typer.BadParameter(f"{path} is one of the files to read; name another", param_hint=option)
        if path is not None:
            _require_writable(path, option)
    if output is not None and any((output / name).resolve() in read for name in SPLIT_FILES.values()):
        raise typer.BadParameter(f"{output} has files to read; name another folder", param_hint="--output")


def _require_writable(path: Path, option: str) -> None:
    """By opening it; what is there stays, and what is not there is not made."""
    is_new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        text = f"{path} cannot be written ({error.strerror}); name another"
        raise typer.BadParameter(text, param_hint=option) from error
    if is_new:
        path.unlink()


def write(found: "Document", report: Path | None, html: Path | None) -> None:
    """Write the report as JSON and as a page, where these are asked for. Raises OSError."""
    from finetune_trainer.report.document import encode
    from finetune_trainer.report.htmlpage import page

    if report is not None:
        report.write_bytes(encode(found))
    if html is not None:
        html.write_text(page(found), encoding="utf-8")
