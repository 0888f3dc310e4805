# SPDX-License-Identifier: Apache-2.0
"""`finetune run`: from rows or YAML to a served model, on this machine or in a cluster."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from finetune_client.connection import connect
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.local import ROOT, Until
from finetune_client.verbs.options import Context, Kubeconfig, Namespace, repeating


def run(
    *,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="YAML files, or the folder of a kustomization; with --model a file of rows.", metavar="FILE…"
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Base model of a file of rows, whose YAML is written.", metavar="URI")
    ] = "",
    gate: Annotated[
        list[str],
        typer.Option(help="Bound of that YAML's gates, such as 'loss <= 1.5'.", metavar="BOUND"),
    ] = [],  # noqa: B006
    claim: Annotated[
        list[str], typer.Option(help="Folder in place of a claim of pvc://NAME/…", metavar="NAME=FOLDER")
    ] = [],  # noqa: B006 - typer copies it
    configmap: Annotated[
        list[str],
        typer.Option(help="Folder with the files of configmap://NAME/…", metavar="NAME=FOLDER"),
    ] = [],  # noqa: B006
    secret: Annotated[
        list[str], typer.Option(help="Folder with the keys of a Secret as files.", metavar="NAME=FOLDER")
    ] = [],  # noqa: B006
    profile: Annotated[
        Path | None, typer.Option(help="ComputeProfile in place of this machine's.", metavar="FILE")
    ] = None,
    until: Annotated[Until | None, typer.Option(help="Last stage.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the objects, logs and results.")] = ROOT,
    serve: Annotated[
        bool,
        typer.Option(help="Serve the endpoint of the files after the run; with --cluster, wait for it."),
    ] = True,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Run in a cluster: upload the rows, apply, follow and report."),
    ] = False,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Carry out the files on this machine, as the cluster would; with --cluster in a cluster."""
    selected = {"--namespace": namespace, "--context": context, "--kubeconfig": kubeconfig}
    if cluster:
        local = {"--claim": claim, "--secret": secret, "--profile": profile, "--until": until}
        _refuse_for_cluster({**local, "--folder": None if folder == ROOT else folder})
        from finetune_client.verbs.cluster_run import run_in_cluster

        with repeating({"namespace": namespace, "context": context, "kubeconfig": kubeconfig}):
            backend = connect(namespace, context, kubeconfig)
            run_in_cluster(backend, files, model, gate, _named("--configmap", configmap), serve=serve)
        return
    if named := [option for option, value in selected.items() if value]:
        raise OperationError(
            f"{', '.join(named)}: a run on this machine has no cluster; add --cluster to run in one",
            exit_code=ProgramExit.INVALID,
        )
    # The parts of a cluster and of this machine are imported when one of them is chosen.
    from finetune_client.verbs.local_run import Folders, run_locally

    folders = Folders(_named("--claim", claim), _named("--configmap", configmap), _named("--secret", secret))
    run_locally(files, model, gate, folders, profile=profile, until=until, root=folder, serve=serve)


ONLY_LOCAL: Final = {
    "--claim": "rows and models are uploaded: finetune upload FOLDER --to pvc://NAME",
    "--secret": "a Secret is created before: kubectl create secret generic NAME --from-file=FOLDER",
    "--profile": "the cluster has its own ComputeProfiles; spec.compute.profile selects one",
    "--until": "a run carries out all stages; preflight predicts time and cost before it trains",
    "--folder": "the cluster stores the objects, and `finetune report` shows the results",
}
"""Options of a run on this machine, and what there is in a cluster instead."""


def _refuse_for_cluster(options: Mapping[str, object]) -> None:
    named = [option for option, value in options.items() if value]
    if named:
        raise OperationError(
            f"{', '.join(named)}: only for a run on this machine. In a cluster:",
            details=[f"{option}: {ONLY_LOCAL[option]}" for option in named],
            exit_code=ProgramExit.INVALID,
        )


def _named(option: str, values: Sequence[str]) -> dict[str, Path]:
    folders = {}
    for value in values:
        name, equals, folder = value.partition("=")
        path = Path(folder).expanduser().resolve()
        if not equals or not path.is_dir():
            raise OperationError(
                f"{option} {value}: write {option} NAME=FOLDER with a folder that exists",
                exit_code=ProgramExit.INVALID,
            )
        folders[name] = path
    return folders
