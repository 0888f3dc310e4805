# SPDX-License-Identifier: Apache-2.0
"""Options that verbs share, and the backend that they select."""

from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from finetune_client.backend import Backend
from finetune_client.errors import OperationError, ProgramExit


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


def connect(
    namespace: str = "", context: str = "", kubeconfig: Path | None = None, local: Path | None = None
) -> Backend:
    """The namespace of a cluster, or the folder of local runs, that the options select.

    Raises:
        OperationError: no cluster is configured, or the options contradict each other.
    """
    if local is None:
        from finetune_client.access import Access
        from finetune_client.cluster import ClusterBackend

        return ClusterBackend(Access("kubectl", kubeconfig=kubeconfig, context=context), namespace)
    if namespace or context or kubeconfig is not None:
        raise OperationError(
            "--local and the options of a cluster (--namespace, --context, --kubeconfig) exclude each other",
            exit_code=ProgramExit.INVALID,
        )
    if find_spec("finetune_client.local") is None or find_spec("finetune_client.local.backend") is None:
        raise OperationError("this program has no local runs: install finetune-operator[local]")
    backend: Backend = import_module("finetune_client.local.backend").LocalBackend(local)
    return backend
