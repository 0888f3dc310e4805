# SPDX-License-Identifier: Apache-2.0
"""`submit`: apply manifests, and say what waits for what."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from finetune_client.backend import Backend, Object
from finetune_client.client import Client, Run, read_manifests
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.tables import printable
from finetune_client.verbs.following import watch_until
from finetune_client.verbs.options import Connect, connected


@connected(local=False)
def submit(
    files: Annotated[list[Path], typer.Argument(help="Files or folders with manifests.", metavar="FILE...")],
    *,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the run until it has ended; exit codes of `wait`.")
    ] = False,
    connect: Connect,
) -> None:
    """Apply manifests to the cluster by server-side apply, with the field manager `finetune`."""
    manifests = [manifest for file in files for manifest in read_manifests(file)]
    backend = connect()
    refuse_other_namespaces(manifests, backend.namespace, "submit")
    runs = apply_all(backend, manifests)
    if not wait:
        for run in runs:
            print(f"finetune watch {run.name} -n {backend.namespace}")
        return
    if not runs:
        raise OperationError(
            "--wait needs a FineTuneJob, and the files have none", exit_code=ProgramExit.INVALID
        )
    for run in runs:
        watch_until(backend, run.name)


def apply_all(backend: Backend, manifests: Iterable[Object]) -> list[Run]:
    """Apply objects one by one, and say what each waits for. Returns the runs.

    Raises:
        OperationError: the API server refused one; those before it are applied.
    """
    client = Client(backend=backend)
    runs: list[Run] = []
    for manifest in manifests:
        runs += client.submit([manifest])
        waits = waits_for(manifest)
        print(printable(f"{manifest['kind']} {manifest['metadata']['name']} applied{waits}"))
    return runs


def waits_for(manifest: Object) -> str:
    """What a new object waits for, to be added to its line; empty if nothing."""
    spec = manifest.get("spec") or {}
    if manifest["kind"] == "FineTuneJob":
        if spec.get("suspend"):
            return ": suspended until `finetune resume`"
        reference = ((spec.get("dataset") or {}).get("ref") or {}).get("name")
        return f": waits for a version of Dataset {reference}" if reference else ""
    if manifest["kind"] == "Dataset":
        sources = [str(source.get("uri")) for source in spec.get("sources") or ()]
        return f": reads {', '.join(sources)}" if sources else ""
    if manifest["kind"] == "InferenceDeployment":
        follows = [(model.get("follow") or {}).get("modelLine") for model in spec.get("models") or ()]
        lines = ", ".join(str(line) for line in follows if line)
        return f": waits for a promoted Checkpoint of model line {lines}" if lines else ""
    return ""


def refuse_other_namespaces(manifests: Iterable[Object], namespace: str, verb: str) -> None:
    """Refuse manifests that name another namespace than the one that the options select."""
    for manifest in manifests:
        named = manifest["metadata"].get("namespace")
        if named and named != namespace:
            raise OperationError(
                f"{manifest['kind']} {manifest['metadata']['name']}: metadata.namespace is {named}, and the"
                f" program uses namespace {namespace}",
                [f"finetune {verb} -n {named} FILE"],
                exit_code=ProgramExit.INVALID,
            )
