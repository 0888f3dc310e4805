# SPDX-License-Identifier: Apache-2.0
"""`watch`, `wait` and `logs`: a run while it works, and how it ended."""

import re
import sys
from typing import Annotated, Final

import typer

from finetune_client.backend import Backend
from finetune_client.client import Client, find_checkpoint, read_run, wait_for
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.follow import Follower, RunStatus, true_condition
from finetune_client.outcome import WaitFor, default_goal, find_outcome
from finetune_client.tables import console, printable
from finetune_client.verbs.listing import complete_runs
from finetune_client.verbs.options import Connect, connected
from finetune_operator.status.reasons import ConditionType
from finetune_trainer.contract.vocabulary import Stage

UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

RunName = Annotated[
    str, typer.Argument(help="Name of the run.", metavar="NAME", autocompletion=complete_runs)
]
OptionalRunName = Annotated[
    str,
    typer.Argument(
        help="Name of the run. Default: the newest.", metavar="NAME", autocompletion=complete_runs
    ),
]
StageName = Annotated[Stage | None, typer.Option("--stage", help="Only this stage.")]
WaitGoal = Annotated[
    WaitFor | None,
    typer.Option("--for", help="Default: promoted, or ready for a run that never promotes."),
]
Timeout = Annotated[
    str, typer.Option("--timeout", help="Such as 90s, 30m or 2h. Default: no limit.", metavar="DURATION")
]


@connected()
def watch(
    name: OptionalRunName = "",
    *,
    connect: Connect,
) -> None:
    """Show stages, loss, prediction and what the run waits for until it ends."""
    backend = connect()
    if not name:
        runs = Client(backend=backend).runs()
        if not runs:
            raise OperationError(
                f"namespace {backend.namespace} has no runs",
                ["finetune submit FILE"],
                exit_code=ProgramExit.INVALID,
            )
        name = runs[-1].name
    watch_until(backend, name)


@connected()
def wait(
    name: RunName,
    *,
    for_: WaitGoal = None,
    timeout: Timeout = "",
    connect: Connect,
) -> None:
    """Wait until a run is promoted, ready or trained, or has failed."""
    limit = parse_duration(timeout) if timeout else None
    backend = connect()
    goal = for_ or default_goal(read_run(backend, name))
    outcome = wait_for(backend, name, goal, limit)
    if outcome.exit_code is not ProgramExit.DONE:
        raise OperationError(outcome.message, [f"finetune logs {name}"], exit_code=outcome.exit_code)
    print(outcome.message)


@connected()
def logs(
    name: RunName,
    *,
    stage: StageName = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more lines until the run ends.")
    ] = False,
    connect: Connect,
) -> None:
    """Print the logs of a run's pods in the order of its stages."""
    backend = connect()
    read_run(backend, name)
    container = ""
    for line in backend.logs(name, stage, follow=follow):
        if (title := f"{line.pod} ({line.container})") != container:
            container = title
            print(f"==> {printable(title)} <==", file=sys.stderr)
        print(printable(line.text), flush=follow)
    if not container:
        _print_stored(backend, name, stage)


def watch_until(backend: Backend, name: str) -> None:
    """Show a run until it has reached the goal that `wait` has by default.

    Args:
        backend: where the run is.
        name: name of the FineTuneJob.

    Raises:
        OperationError: the run did not reach the goal; the exit code is that of `wait`.
    """
    wanted = default_goal(read_run(backend, name))
    follower = Follower(backend, console(), name, explains=True)

    def done(status: RunStatus) -> bool:
        return find_outcome(status.job, wanted, status.checkpoint) is not None

    status = follower.until(done)
    outcome = find_outcome(status.job, wanted, status.checkpoint)
    if outcome is None:
        raise OperationError(f"FineTuneJob {name} is not {wanted.value}")
    if outcome.exit_code is not ProgramExit.DONE:
        raise OperationError(outcome.message, [f"finetune logs {name}"], exit_code=outcome.exit_code)
    print(outcome.message)


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `30m` or `2h`.

    Raises:
        OperationError: it is not a duration.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise OperationError(
            f"--timeout {text}: write a number with s, m or h, such as 30m", exit_code=ProgramExit.INVALID
        )
    return float(found[1]) * UNITS[found[2]]


def _print_stored(backend: Backend, name: str, stage: str | None) -> None:
    """Say why there is no log, and what the status keeps of the run."""
    job = read_run(backend, name)
    what = f"stage {stage} of run {name}" if stage else f"run {name}"
    print(f"No pod of {what} has a log: it has not started, or its pods were removed.", file=sys.stderr)
    for type_ in (ConditionType.STALLED, ConditionType.RECONCILING, ConditionType.READY):
        if (condition := true_condition(job.status.conditions, type_)) is not None:
            print(printable(f"{condition.type}: {condition.reason}: {condition.message}"))
    training, evaluation = job.status.training, job.status.evaluation
    checkpoint = find_checkpoint(backend, job)
    stored = {
        "loss curve": training.report_uri if training is not None else None,
        "evaluation page": evaluation.report_uri if evaluation is not None else None,
        "weights": checkpoint.spec.uri if checkpoint is not None else None,
    }
    for title, uri in stored.items():
        if uri:
            print(printable(f"{title}: {uri}"))
