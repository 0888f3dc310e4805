# SPDX-License-Identifier: Apache-2.0
"""python -m tools.release publish|tag"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tools.cluster.commands import ClusterError
from tools.cluster.toolchain import ensure
from tools.images.buildah import ImageError
from tools.images.tags import Variant
from tools.release.publish import FOLDER, Release, tag_release
from tools.release.registry import PROGRAMS, Registry
from tools.release.statements import Artifact, SigningKey

LOCAL_BUILDER = "https://finetune.dev/builders/local"

app = typer.Typer(add_completion=False)


@app.command("publish")
def publish_release(
    variant: Annotated[
        list[Variant] | None,
        typer.Option(help="Variant of the trainer image; the first is the default of the chart."),
    ] = None,
    trial: Annotated[
        bool,
        typer.Option(
            "--trial",
            help="Accept changes without a commit, any base image, a version that exists, and no key.",
        ),
    ] = False,
    folder: Annotated[
        Path, typer.Option(help="Where to write the list and the statements; its files are deleted first.")
    ] = FOLDER,
) -> None:
    """Build the images and charts of this version, push them to IMAGE_REGISTRY, sign, verify and tag them.

    RELEASE_KEY is a file with a private key of the curve P-256 in PEM form; RELEASE_KEY_PASSWORD decrypts
    it. Without a key nothing is signed, and only a trial is tagged. RELEASE_BUILDER is the URI of this
    machine in the provenance.
    """
    with _reported():
        registry = _registry()
        key = os.environ.get("RELEASE_KEY")
        signing = SigningKey.read(Path(key), os.environ.get("RELEASE_KEY_PASSWORD")) if key else None
        builder = os.environ.get("RELEASE_BUILDER", LOCAL_BUILDER)
        variants = tuple(variant or (Variant.CUDA, Variant.CPU))
        Release(registry, variants, signing, builder, trial, folder).publish()
        if signing or trial:
            _print(tag_release(registry, folder, is_trial=trial))
    if signing is None:
        print("RELEASE_KEY is not set: nothing is signed", file=sys.stderr)
        if not trial:
            print(f"Sign the statements in {folder}, then run `make release-tags`", file=sys.stderr)


@app.command("tag")
def add_tags() -> None:
    """Tag what `publish` pushed, after it has been signed with a key or by another program."""
    with _reported():
        registry = _registry()
        ensure(PROGRAMS)
        _print(tag_release(registry))


def _registry() -> Registry:
    prefix = os.environ.get("IMAGE_REGISTRY", "").rstrip("/")
    if not prefix:
        raise ImageError("set IMAGE_REGISTRY, such as registry.example.com/finetune")
    return Registry(prefix)


def _print(artifacts: Sequence[Artifact]) -> None:
    for artifact in artifacts:
        print(f"{artifact.repository}:{artifact.tags[0]}@{artifact.digest}")


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except (ImageError, ClusterError, subprocess.CalledProcessError) as error:
        print(f"release: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
