# SPDX-License-Identifier: Apache-2.0
"""The files that `finetune-check` writes in addition to the rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from finetune_trainer.data.files import SourceFile
from finetune_trainer.rows import SPLIT_FILES

if TYPE_CHECKING:
    from finetune_trainer.report.document import Document


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
