# SPDX-License-Identifier: Apache-2.0
"""`finetune init`: files to begin with, from an example or from another run."""

from pathlib import Path
from typing import Annotated

import typer

from finetune_client.backend import read_object
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.templates import TEMPLATES, write_copy, write_template
from finetune_client.verbs.options import Connect, connected

DEFAULT = next(iter(TEMPLATES))


@connected()
def init(
    template: Annotated[
        str, typer.Argument(help=f"One of {', '.join(TEMPLATES)}.", metavar="[TEMPLATE]")
    ] = DEFAULT,
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder to write to. Default: the name of the template.", metavar="[FOLDER]"),
    ] = None,
    *,
    list_: Annotated[bool, typer.Option("--list", help="List the templates.")] = False,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Copy the spec of this run instead of a template.", metavar="RUN"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the copy. Default: RUN-2.", metavar="NAME")
    ] = None,
    connect: Connect,
) -> None:
    """Write an example with its rows, or a copy of a run, to change and run."""
    if list_:
        width = max(map(len, TEMPLATES))
        for each, text in TEMPLATES.items():
            print(f"{each:{width}}  {text}")
        return
    if from_ is None:
        if name is not None:
            raise OperationError("--name needs --from RUN", exit_code=ProgramExit.INVALID)
        _from_template(template, folder or Path(template))
        return
    run = read_object(connect(), "FineTuneJob", from_)
    copied = name or f"{from_}-2"
    file = Path(f"{copied}.yaml")
    write_copy(run, copied, file)
    print(f"wrote {file}: change it, then run it or apply it")


def _from_template(template: str, folder: Path) -> None:
    for path in write_template(template, folder):
        print(path)
    print(f"Set baseModel.uri to a model that you have, then: finetune validate {folder}")
