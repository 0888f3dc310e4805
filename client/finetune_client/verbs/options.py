# SPDX-License-Identifier: Apache-2.0
"""Options that verbs share, and the backend that they select."""

import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

from finetune_client.backend import Backend, Object
from finetune_client.connection import connect
from finetune_client.errors import OperationError


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

DOCUMENTS: Final = frozenset({OutputFormat.JSON, OutputFormat.YAML})
"""Formats of documents for programs."""


def print_document(document: Object, output: OutputFormat) -> None:
    """Print a document in one of DOCUMENTS. Characters beyond ASCII are escaped: some control terminals."""
    if output is OutputFormat.JSON:
        print(json.dumps(document, indent=2))
        return
    import yaml

    print(yaml.safe_dump(document, sort_keys=False), end="")


Connect = Callable[[], Backend]
"""Opens the namespace of a cluster, or the folder of local runs, that the options select."""
LOCAL: Final = "local"
SELECTION: Final[dict[str, tuple[Any, Any]]] = {
    "namespace": (Namespace, ""),
    "context": (Context, ""),
    "kubeconfig": (Kubeconfig, None),
    LOCAL: (Local, None),
}
"""Annotation and default of each option that selects a backend."""


COMMAND: Final = re.compile(r"finetune (?!validate|check|init|run|submit)(?:(?!: |  #).)*")
"""A command of the program that needs to find objects, without the remark behind it."""


@contextmanager
def repeating(selected: Mapping[str, object]) -> Iterator[None]:
    """Add the options that the user gave to the commands of a failure, so that they find the same objects.

    Args:
        selected: values by names of SELECTION.
    """
    options = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in selected.items() if value)

    def repeated(command: str) -> str:
        found = COMMAND.match(command)
        if found is None or " -n " in command:
            return command
        return f"{found[0]}{options}{command[found.end() :]}"

    try:
        yield
    except OperationError as error:
        error.commands = tuple(map(repeated, error.commands))
        raise


def connected(*, local: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options that select a backend, in place of its parameter `connect`, a `Connect`.

    Args:
        local: whether the verb works with a folder of local runs too.
    """
    selection = {name: each for name, each in SELECTION.items() if local or name != LOCAL}

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(verb, include_extras=True)
        own = {name: each for name, each in inspect.signature(verb).parameters.items() if name != "connect"}

        @wraps(verb)
        def call(**values: Any) -> None:
            selected = {name: values[name] for name in selection}
            with repeating(selected):
                verb(**{name: values[name] for name in own}, connect=lambda: connect(**selected))

        parameters = [each.replace(annotation=hints[name]) for name, each in own.items()]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in selection.items()
            if name not in own
        ]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # typer reads it
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        return call

    return decorate
