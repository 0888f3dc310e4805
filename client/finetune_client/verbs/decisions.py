# SPDX-License-Identifier: Apache-2.0
"""`approve`, `reject`, `rollback`, `cancel`, `suspend`, `resume`: a person's decisions, and what follows."""

import sys
from typing import Annotated, Literal

import typer

from finetune_client import decisions
from finetune_client.backend import Backend, Object, parse, read_object
from finetune_client.decisions import SpecChange
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.ownership import refuse_if_git_owns
from finetune_client.verbs.listing import complete_runs
from finetune_client.verbs.options import Connect, connected
from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment

CheckpointOrRun = Annotated[
    str,
    typer.Argument(
        help="Checkpoint, or a run for the Checkpoint that it evaluated.",
        metavar="CHECKPOINT|RUN",
        autocompletion=complete_runs,
    ),
]
Why = Annotated[str, typer.Option("--reason", help="Reason, recorded in spec.approval.", metavar="TEXT")]
Run = Annotated[
    str, typer.Argument(help="Name of the FineTuneJob.", metavar="NAME", autocompletion=complete_runs)
]


@connected()
def approve(
    name: CheckpointOrRun,
    *,
    reason: Why,
    connect: Connect,
) -> None:
    """Approve a Checkpoint, which promotes it."""
    _judge("Approved", name, reason, connect())


@connected()
def reject(
    name: CheckpointOrRun,
    *,
    reason: Why,
    connect: Connect,
) -> None:
    """Reject a Checkpoint, which also withdraws its promotion."""
    _judge("Rejected", name, reason, connect())


@connected()
def rollback(
    endpoint: Annotated[str, typer.Argument(help="Name of the InferenceDeployment.", metavar="ENDPOINT")],
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="Revision of status.revisions. Default: the one before.", metavar="REVISION"
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", help="Who decided, and why; recorded in a decision.", metavar="TEXT")
    ] = "",
    connect: Connect,
) -> None:
    """Abort a rollout, or return to the Checkpoints of an earlier revision."""
    backend = connect()
    found = read_object(backend, "InferenceDeployment", endpoint)

    def exists(checkpoint: str) -> bool:
        return backend.get("Checkpoint", checkpoint) is not None

    parsed = parse(InferenceDeployment, found)
    change = decisions.rollback(parsed, found, to, reason, exists)
    _make(backend, found, change)


@connected()
def cancel(
    name: Run,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    connect: Connect,
) -> None:
    """End a run for good."""
    backend = connect()
    found = read_object(backend, "FineTuneJob", name)
    change = decisions.cancel(parse(FineTuneJob, found))
    if change.spec:
        refuse_if_git_owns(change.kind, found, change.spec)
    if change.spec and not yes and sys.stdin.isatty() and not typer.confirm(f"End {name} for good?"):
        raise OperationError("not cancelled", exit_code=ProgramExit.INTERRUPTED)
    _make(backend, found, change)


@connected()
def suspend(
    name: Run,
    *,
    connect: Connect,
) -> None:
    """Suspend a run: it frees its devices and can be resumed."""
    backend = connect()
    found = read_object(backend, "FineTuneJob", name)
    _make(backend, found, decisions.suspend(parse(FineTuneJob, found)))


@connected()
def resume(
    name: Run,
    *,
    connect: Connect,
) -> None:
    """Resume a suspended run from its last saved state."""
    backend = connect()
    found = read_object(backend, "FineTuneJob", name)
    _make(backend, found, decisions.resume(parse(FineTuneJob, found)))


def _judge(state: Literal["Approved", "Rejected"], name: str, reason: str, backend: Backend) -> None:
    if not reason.strip():
        raise OperationError(
            "--reason is empty: write why, for whoever reads it later", exit_code=ProgramExit.INVALID
        )
    found = backend.get("Checkpoint", name)
    if found is None:
        job = backend.get("FineTuneJob", name)
        if job is None:
            raise OperationError(
                f"namespace {backend.namespace} has neither a Checkpoint nor a FineTuneJob {name}",
                [f"kubectl -n {backend.namespace} get checkpoints,finetunejobs"],
                exit_code=ProgramExit.INVALID,
            )
        name = decisions.evaluated_checkpoint(parse(FineTuneJob, job))
        found = read_object(backend, "Checkpoint", name)
    notes = []
    try:
        endpoints = [parse(InferenceDeployment, each) for each in backend.objects("InferenceDeployment")]
    except OperationError as error:
        # An approver need not see endpoints.
        endpoints = None
        notes.append(f"Its endpoints are not named: {error}")
    line = [parse(Checkpoint, each) for each in backend.objects("Checkpoint")]
    change = decisions.judge(state, parse(Checkpoint, found), reason, line, endpoints)
    _make(backend, found, change, notes)


def _make(
    backend: Backend, obj: Object, change: SpecChange, notes: "list[str] | tuple[str, ...]" = ()
) -> None:
    """Make the change unless Git owns the object, and print what follows."""
    if change.spec:
        refuse_if_git_owns(change.kind, obj, change.spec)
        backend.patch(change.kind, change.name, {"spec": change.spec})
    print(change.done)
    for sentence in (*change.next, *notes):
        print(f"  {sentence}")
    # Local runs are not in a cluster.
    if change.follow and getattr(backend, "access", None) is not None:
        print(f"  Follow it: {change.follow}")
