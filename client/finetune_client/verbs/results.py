# SPDX-License-Identifier: Apache-2.0
"""`report`, `compare`, `plot`: what runs achieved."""

import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated, Final

import typer

from finetune_client.backend import Backend, Object, parse
from finetune_client.client import read_run
from finetune_client.comparison import RunComparison
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.run_report import RunReport
from finetune_client.tables import PLAIN_WIDTH, console
from finetune_client.verbs.listing import complete_runs
from finetune_client.verbs.options import DOCUMENTS, Connect, Output, OutputFormat, connected, print_document
from finetune_operator.api.dataset import Dataset

PLOT_LINES: Final = 20


@connected()
def report(
    name: Annotated[
        str, typer.Argument(help="Name of the FineTuneJob.", metavar="NAME", autocompletion=complete_runs)
    ],
    *,
    open_page: Annotated[
        bool,
        typer.Option("--open", help="Open the evaluation page, or else the training page, in a browser."),
    ] = False,
    output: Output = None,
    connect: Connect,
) -> None:
    """Scores with intervals, gates, findings, prediction and cost of a run."""
    backend = connect()
    made = make_report(backend, name)
    if not _printed(made.to_json(), output):
        console().print(made.render(), soft_wrap=False)
    if open_page:
        _open(backend, made)


def make_report(backend: Backend, name: str) -> RunReport:
    """The report of a run. Raises OperationError as `read_run`."""
    job = read_run(backend, name)
    found = backend.get("Dataset", job.spec.dataset.ref.name) if job.spec.dataset.ref is not None else None
    return RunReport(job, parse(Dataset, found) if found is not None else None)


@connected()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(help="Two or more FineTuneJobs.", metavar="A B…", autocompletion=complete_runs),
    ],
    *,
    output: Output = None,
    connect: Connect,
) -> None:
    """Runs side by side: the fields that differ, scores, verdicts and cost."""
    if len(dict.fromkeys(names)) < 2:
        raise OperationError("name at least two runs to compare", exit_code=ProgramExit.INVALID)
    backend = connect()
    made = RunComparison(tuple(read_run(backend, name) for name in dict.fromkeys(names)))
    if not _printed(made.to_json(), output):
        console().print(made.render())


@connected()
def plot(
    names: Annotated[
        list[str],
        typer.Argument(help="One or more FineTuneJobs.", metavar="NAME…", autocompletion=complete_runs),
    ],
    *,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Write an SVG file instead of drawing.", metavar="FILE")
    ] = None,
    output: Output = None,
    connect: Connect,
) -> None:
    """Loss curves of runs, in the terminal or as an SVG file."""
    from finetune_client.curves import curve_of, draw, picture

    backend = connect()
    screen = console()

    def on_unread(error: OperationError) -> None:
        typer.echo(f"{error}: the curve is that of a Checkpoint, with fewer points", err=True)

    curves = [
        curve_of(
            read_run(backend, name), backend.read, lambda each: backend.get("Checkpoint", each), on_unread
        )
        for name in dict.fromkeys(names)
    ]
    if _printed({"curves": [curve.to_json() for curve in curves]}, output):
        return
    if svg is not None:
        try:
            svg.write_text(picture(curves))
        except OSError as error:
            raise OperationError(f"{svg} cannot be written: {error.strerror}") from error
        print(f"{svg} written")
        return
    width = screen.width if screen.is_terminal else PLAIN_WIDTH
    print(draw(curves, width, PLOT_LINES, color=screen.color_system is not None and screen.is_terminal))


def _printed(document: Object, output: OutputFormat | None) -> bool:
    """Print the document if a format for programs is wanted, and return whether it is.

    Raises:
        OperationError: the format is for tables of objects.
    """
    if output is None:
        return False
    if output not in DOCUMENTS:
        raise OperationError(
            f"--output {output.value} is not supported here: write json or yaml",
            exit_code=ProgramExit.INVALID,
        )
    print_document(document, output)
    return True


def _open(backend: Backend, made: RunReport) -> None:
    """Read a page from the store, and open it in a browser."""
    subject = next((each for each in ("evaluation", "training") if each in made.pages), None)
    if subject is None:
        raise OperationError(f"FineTuneJob {made.job.name} has no page yet: it is written when training ends")
    folder = Path(tempfile.mkdtemp(prefix="finetune-"))
    file = folder / f"{made.job.name}-{subject}.html"
    _fetch_page(backend, made.pages[subject], file)
    opened = webbrowser.open(file.as_uri())
    typer.echo(f"{file}" if opened else f"no browser was found: open {file}", err=True)


def _fetch_page(backend: Backend, uri: str, file: Path) -> None:
    """Bring a page of the store to a file; from a cluster as `download` does."""
    # Only this way needs the packages of a cluster.
    from finetune_client.cluster import ClusterBackend
    from finetune_client.transfer.display import Display
    from finetune_client.transfer.results import Part, What
    from finetune_client.transfer.stores import Stores
    from finetune_client.verbs.transfer import fetch_parts

    if not isinstance(backend, ClusterBackend):
        file.write_bytes(backend.read(uri))
        return
    with Display() as display:
        part = Part(What.REPORT, uri, "page")
        fetched = fetch_parts([part], file.parent, Stores(backend, display.say), display)
    fetched.pages[0].rename(file)
