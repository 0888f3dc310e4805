# SPDX-License-Identifier: Apache-2.0
"""The verbs of `finetune`: one row each, and a group that imports a verb's module when the verb runs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from finetune_client.errors import OperationError, ProgramExit


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb, a function with its name in a module of `finetune_client.verbs`."""

    name: str
    module: str
    panel: str
    help: str

    def load(self) -> Any:
        """The command. Only its own module is imported."""
        function = getattr(import_module(f"finetune_client.verbs.{self.module}"), self.name)
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(self.name, help=self.help)(function)
        return typer.main.get_command(app)


FILES: Final = "Files"
RUNS: Final = "Runs"
DECISIONS: Final = "Decisions"
ENDPOINTS: Final = "Endpoints"

VERBS: Final = (
    Verb("init", "init", FILES, "Write an example, or a copy of a run, to begin with."),
    Verb("check", "check", FILES, "Check rows as the cluster does."),
    Verb("validate", "validate", FILES, "Judge manifests as the API server does, without a cluster."),
    Verb("run", "run", RUNS, "Train, evaluate and serve, on this machine or in a cluster."),
    Verb("submit", "submitting", RUNS, "Apply manifests, and say what waits for what."),
    Verb("ls", "listing", RUNS, "List runs."),
    Verb("watch", "following", RUNS, "Show a run until it ends."),
    Verb("wait", "following", RUNS, "Wait for a run, with exit codes for CI."),
    Verb("logs", "following", RUNS, "Print the logs of a run's pods."),
    Verb("report", "results", RUNS, "Show scores, gates, findings and cost of a run."),
    Verb("compare", "results", RUNS, "Show runs side by side."),
    Verb("plot", "results", RUNS, "Draw the loss curves of runs."),
    Verb("approve", "decisions", DECISIONS, "Approve a Checkpoint, which promotes it."),
    Verb("reject", "decisions", DECISIONS, "Reject a Checkpoint and withdraw its promotion."),
    Verb("rollback", "decisions", DECISIONS, "Return an endpoint to an earlier revision."),
    Verb("cancel", "decisions", DECISIONS, "End a run for good."),
    Verb("suspend", "decisions", DECISIONS, "Suspend a run, which frees its devices."),
    Verb("resume", "decisions", DECISIONS, "Resume a suspended run."),
    Verb("chat", "chat", ENDPOINTS, "Ask a served model, or two side by side."),
    Verb("upload", "transfer", FILES, "Bring rows or a base model into the cluster."),
    Verb("download", "transfer", FILES, "Fetch weights, reports and answers of a run."),
)
_BY_NAME: Final = {verb.name: verb for verb in VERBS}


class VerbGroup(TyperGroup):
    """The verbs. Until one is chosen, each is only its line in the help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for verb in VERBS:
            line = TyperCommand(verb.name, help=verb.help, rich_help_panel=verb.panel)
            self.add_command(line, verb.name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that the arguments name, and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and _BY_NAME[str(command.name)].load(), rest


app = typer.Typer(
    cls=VerbGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def program() -> None:
    """Fine-tune language models: on this machine, or with the FineTuneJob operator."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit."""
    try:
        app(arguments)
    except OperationError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ProgramExit.INTERRUPTED)


def _print_error(error: OperationError) -> None:
    """Print the message, then what helps: lines of output, and commands."""
    print(f"finetune: {error}", file=sys.stderr)
    for line in error.details:
        print(f"  {line}", file=sys.stderr)
    for command in error.commands:
        print(f"  {command}", file=sys.stderr)
