# SPDX-License-Identifier: Apache-2.0
"""Options that verbs share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class OutputFormat(StrEnum):
    """Formats of `--output`, as in kubectl."""

    JSON = "json"
    YAML = "yaml"
    WIDE = "wide"
    NAME = "name"


Namespace = Annotated[
    str,
    typer.Option("--namespace", "-n", help="Namespace. Default: that of the context.", metavar="NAME"),
]
Context = Annotated[
    str,
    typer.Option("--context", help="Context of the kubeconfig. Default: the current one.", metavar="NAME"),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", help="File with clusters and credentials, as in kubectl.", metavar="FILE"),
]
Local = Annotated[
    Path | None,
    typer.Option("--local", help="Folder of local runs, instead of a cluster.", metavar="FOLDER"),
]
Output = Annotated[
    OutputFormat | None, typer.Option("--output", "-o", help="Format of the output, as in kubectl.")
]
