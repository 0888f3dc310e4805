# SPDX-License-Identifier: Apache-2.0
"""`ls`: the runs of a namespace, or of all."""

import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from finetune_client.backend import Backend, Object
from finetune_client.connection import connect
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.tables import printable
from finetune_client.verbs.options import Connect, Namespace, Output, OutputFormat, connected, print_document

KIND: Final = "FineTuneJob"
COLUMN_SPACE: Final = 3
COMPLETION_SECONDS: Final = 2.0
"""Seconds for which a shell waits for the names of runs."""


@connected()
def ls(
    *,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Runs of all namespaces.")
    ] = False,
    selector: Annotated[
        str, typer.Option("--selector", "-l", help="Only runs with these labels.", metavar="LABELS")
    ] = "",
    namespace: Namespace = "",
    output: Output = None,
    connect: Connect,
) -> None:
    """List runs with progress, loss, score and remaining time."""
    if all_namespaces and namespace:
        raise OperationError(
            "-A and -n exclude each other: leave one of them out", exit_code=ProgramExit.INVALID
        )
    backend = connect()
    scope = "all namespaces" if all_namespaces else f"namespace {backend.namespace}"
    if output in (None, OutputFormat.WIDE, OutputFormat.NAME):
        tables = _tables(backend, selector, all_namespaces=all_namespaces)
        _print_tables(tables, output, scope, with_namespace=all_namespaces)
        return
    items = _objects(backend, selector, all_namespaces=all_namespaces)
    print_document({"apiVersion": "v1", "kind": "List", "items": items}, output)


def complete_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of runs that begin like this, for the completion of shells; none after COMPLETION_SECONDS."""
    options = ctx.params
    names: list[str] = []

    def read() -> None:
        # A shell shows nothing of a completion but its words.
        with suppress(Exception):
            backend: Backend = connect(
                options.get("namespace") or "",
                options.get("context") or "",
                options.get("kubeconfig"),
                options.get("local"),
            )
            names.extend(str(row["cells"][0]) for page in _tables(backend) for row in page["rows"])

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(COMPLETION_SECONDS)
    return [name for name in names if name.startswith(incomplete)]


def _tables(backend: Backend, selector: str = "", *, all_namespaces: bool = False) -> Iterator[Object]:
    """Runs as pages of the server's table; of a local folder, with the columns of the definition."""
    from finetune_client.cluster import ClusterBackend

    if isinstance(backend, ClusterBackend):
        yield from backend.table(KIND, selector, all_namespaces=all_namespaces)
        return
    from finetune_client.follow import duration, now
    from finetune_operator.api.crd import KINDS_BY_NAME

    columns = KINDS_BY_NAME[KIND].columns
    definitions = [{"name": "Name"}, *({"name": each.name, "priority": int(each.wide)} for each in columns)]
    rows = []
    for found in _labelled(backend.objects(KIND), selector):
        cells: list[Any] = [found["metadata"]["name"]]
        for column in columns:
            value = _value(found, column.json_path)
            if column.type == "date" and value:
                value = duration((now() - datetime.fromisoformat(str(value))).total_seconds())
            cells.append(value)
        rows.append({"cells": cells, "object": {"metadata": {"namespace": backend.namespace}}})
    yield {"columnDefinitions": definitions, "rows": rows}


def _value(found: Object, json_path: str) -> Any:
    """The value at a path of names, such as `.status.phase`; None if there is none."""
    value: Any = found
    for name in json_path.strip(".").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _labelled(objects: list[Object], selector: str) -> list[Object]:
    """Objects with the labels of a selector `name=value,...`.

    Raises:
        OperationError: the selector has another form, which only a cluster reads.
    """
    wanted = [part.partition("=") for part in selector.split(",") if part]
    if any(not sign or "!" in name for name, sign, _ in wanted):
        raise OperationError(
            f"-l {selector}: local runs are selected by NAME=VALUE only", exit_code=ProgramExit.INVALID
        )
    labels = {name: value.removeprefix("=") for name, _, value in wanted}
    return [each for each in objects if labels.items() <= each["metadata"].get("labels", {}).items()]


def _objects(backend: Backend, selector: str, *, all_namespaces: bool) -> list[Object]:
    from finetune_client.cluster import ClusterBackend

    if isinstance(backend, ClusterBackend):
        return backend.objects(KIND, selector, all_namespaces=all_namespaces)
    return _labelled(backend.objects(KIND), selector)


def _print_tables(
    pages: Iterator[Object], output: OutputFormat | None, scope: str, *, with_namespace: bool
) -> None:
    """Print each page with the widths of the first one, or wider."""
    rows: list[list[str]] = []
    heads: list[str] = []
    for page in pages:
        columns = [
            (number, column["name"])
            for number, column in enumerate(page["columnDefinitions"])
            if output is OutputFormat.WIDE or not column.get("priority")
        ]
        heads = [name.upper() for _, name in columns]
        for row in page["rows"]:
            where = [row["object"]["metadata"]["namespace"]] if with_namespace else []
            cells = ["" if row["cells"][n] is None else str(row["cells"][n]) for n, _ in columns]
            rows.append([printable(cell) for cell in (*where, *cells)])
    if not rows:
        print(f"No runs in {scope}.", file=sys.stderr)
        return
    if output is OutputFormat.NAME:
        name = 1 if with_namespace else 0
        sys.stdout.writelines(f"finetunejob.finetune.dev/{row[name]}\n" for row in rows)
        return
    table = [["NAMESPACE", *heads] if with_namespace else heads, *rows]
    widths = [max(map(len, column)) + COLUMN_SPACE for column in zip(*table, strict=True)]
    sys.stdout.writelines(
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in table
    )
