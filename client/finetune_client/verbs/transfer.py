# SPDX-License-Identifier: Apache-2.0
"""`upload` and `download`: rows and models into a store, results out of it."""

from pathlib import Path
from typing import Annotated

import typer

from finetune_client.cluster import ClusterBackend
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.transfer.copying import AGAIN, Carrier, Patience
from finetune_client.transfer.display import Display
from finetune_client.transfer.results import Fetched, Part, What, fetch, find_parts
from finetune_client.transfer.stores import Stores, Uploaded, bring
from finetune_client.transfer.uploading import Upload, read_upload, total_size
from finetune_client.verbs.listing import complete_runs
from finetune_client.verbs.options import Connect, connected
from finetune_trainer.disk_space import size_text

Image = Annotated[
    str | None,
    typer.Option(
        help="Image of the pod that reaches a claim; it needs Python. Default: the trainer image.",
        metavar="IMAGE",
    ),
]


@connected(local=False)
def upload(
    path: Annotated[Path, typer.Argument(help="A file, or a folder of files.", metavar="FILE|FOLDER")],
    *,
    to: Annotated[
        str | None,
        typer.Option(
            help="pvc://CLAIM or s3://BUCKET, and a folder in it. Default: a ConfigMap for up to 900 KiB of"
            " rows, otherwise the store of the default ComputeProfile.",
            metavar="URI",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the ConfigMap, or of the file in the store. Default: the name of the file.",
            metavar="NAME",
        ),
    ] = None,
    image: Image = None,
    connect: Connect,
) -> None:
    """Upload, and print the uri for a Dataset or a run."""
    with Display() as display:
        try:
            found = read_upload(path, name, display.phase(f"reading {path.name}", total_size(path)))
            if found.left_out:
                display.say(f"left out, because hidden or a linked folder: {', '.join(found.left_out)}")
            backend = connect()
            if not isinstance(backend, ClusterBackend):
                raise OperationError("upload needs a cluster: local runs read files where they are")
            uploaded = bring(backend, found, display, to=to, name=name, image=image)
        except KeyboardInterrupt:
            display.say(f"interrupted: {AGAIN}")
            raise
        if not uploaded.is_new:
            display.say("the same content is there already: nothing was uploaded")
    print(f"uri: {uploaded.uri}", flush=True)
    display.say(_next_step(found, uploaded))


def _next_step(found: Upload, uploaded: Uploaded) -> str:
    secret = f", with credentialsSecretRef: {{name: {uploaded.secret}}} next to it" if uploaded.secret else ""
    if found.is_model:
        return f"Next: write this line under baseModel of a FineTuneJob{secret}."
    return (
        f"Next: write this line under spec.sources of a Dataset{secret}, and apply it. `finetune check` shows"
        " what the Dataset would report about the rows."
    )


@connected()
def download(
    name: Annotated[
        str,
        typer.Argument(
            help="A run (FineTuneJob) or a Checkpoint.",
            metavar="RUN|CHECKPOINT",
            autocompletion=complete_runs,
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder that the files go to. Default: the name.", metavar="FOLDER"),
    ] = None,
    *,
    what: Annotated[
        str,
        typer.Option(
            help="Parts, separated by commas: weights, report, answers. Default: all that exist.",
            metavar="PARTS",
        ),
    ] = "",
    image: Image = None,
    connect: Connect,
) -> None:
    """Download weights, reports and answers, with their digests checked."""
    requested = _parts_of(what)
    backend = connect()
    parts = find_parts(backend, name, requested)
    target = folder if folder is not None else Path(name)
    with Display() as display:
        try:
            fetched = fetch_parts(parts, target, Stores(backend, display.say, image=image), display)
        except KeyboardInterrupt:
            display.say(f"interrupted: {AGAIN}")
            raise
    kept = f", {fetched.kept} of them already there" if fetched.kept else ""
    print(f"{target}: {fetched.files} files, {size_text(fetched.size)}{kept}")
    for path in fetched.pages:
        print(f"  {path}")


def fetch_parts(parts: list[Part], target: Path, stores: Stores, display: Display) -> Fetched:
    """Bring parts of the stores into a folder, and show the progress. Raises OperationError as `fetch`."""

    def begin(total: int) -> Carrier:
        return Carrier(
            arrived=display.phase(f"downloading to {target}", total),
            checked=display.phase("checking", total),
            patience=patience,
        )

    patience = Patience(on_lost=lambda reason: display.say(f"connection lost ({reason}): trying again"))
    with stores as open_files:
        return fetch(parts, target, open_files, patience, begin)


def _parts_of(text: str) -> list[What]:
    """The parts that `--what` names.

    Raises:
        OperationError: it names others.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in set(What)]
    if unknown:
        raise OperationError(
            f"--what {', '.join(unknown)}: write weights, report or answers, separated by commas",
            exit_code=ProgramExit.INVALID,
        )
    return [What(name) for name in names]
