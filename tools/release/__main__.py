"""python -m tools.release"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from tools.cluster.errors import ClusterError
from tools.images.errors import ImageError
from tools.images.tags import Variant
from tools.release.publish import FOLDER, Release
from tools.release.registry import Registry
from tools.release.signing import SigningKey

LOCAL_BUILDER = "https://finetune.dev/builders/local"

app = typer.Typer(add_completion=False)


@app.command()
def main(
    variant: Annotated[
        list[Variant] | None,
        typer.Option(help="Variant of the trainer image; the first is the default of the chart."),
    ] = None,
    trial: Annotated[
        bool,
        typer.Option(
            "--trial",
            help="Accept changes without a commit, any base image, and a version that exists.",
        ),
    ] = False,
) -> None:
    """Build the images and charts of this version, push them to IMAGE_REGISTRY, and sign them.

    RELEASE_KEY is a file with a private key of the curve P-256 in PEM form; RELEASE_KEY_PASSWORD decrypts
    it. Without a key nothing is signed. RELEASE_BUILDER is the URI of this machine in the provenance.
    """
    prefix = os.environ.get("IMAGE_REGISTRY", "").rstrip("/")
    if not prefix:
        print("release: set IMAGE_REGISTRY, such as registry.example.com/finetune", file=sys.stderr)
        raise typer.Exit(1)
    key = os.environ.get("RELEASE_KEY")
    try:
        release = Release(
            Registry(prefix),
            tuple(variant or (Variant.CUDA, Variant.CPU)),
            SigningKey.read(Path(key), os.environ.get("RELEASE_KEY_PASSWORD")) if key else None,
            os.environ.get("RELEASE_BUILDER", LOCAL_BUILDER),
            is_trial=trial,
        )
        artifacts = release.publish()
    except (ImageError, ClusterError, subprocess.CalledProcessError) as error:
        print(f"release: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    for artifact in artifacts:
        print(f"{artifact.repository}:{artifact.tags[0]}@{artifact.digest}")
    if key is None:
        print(f"RELEASE_KEY is not set: nothing is signed; {FOLDER} has the statements", file=sys.stderr)


if __name__ == "__main__":
    app()
