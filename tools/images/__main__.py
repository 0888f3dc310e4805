# SPDX-License-Identifier: Apache-2.0
"""python -m tools.images build|refs"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from tools.cluster.commands import ClusterError
from tools.images.build import build, references
from tools.images.buildah import ImageError
from tools.images.tags import Variant

app = typer.Typer(
    help="Build the container images of the operator and the trainer.",
    no_args_is_help=True,
    add_completion=False,
)


@contextmanager
def report_failures() -> Iterator[None]:
    """Turn an error that a user can fix into a message and exit code 1."""
    try:
        yield
    except (ImageError, ClusterError, subprocess.CalledProcessError) as error:
        print(f"images: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@app.command(name="build")
def build_command(
    variant: Variant = Variant.CPU,
) -> None:
    """Build both images, and load them into the local cluster or push them to the registry IMAGE_REGISTRY.

    Prints the image names as JSON, and the size and budget of each image. Writes the bills of materials to
    build/sbom. Images that exist are not built again.
    """
    with report_failures():
        built = build(variant)
        print(*built.sizes, sep="\n", file=sys.stderr)
        print(json.dumps(built.names._asdict()))


@app.command()
def refs(variant: Variant = Variant.CPU) -> None:
    """Print the names of the images of the present sources as JSON: {"operator": …, "trainer": …}."""
    with report_failures():
        print(json.dumps(references(variant)._asdict()))


if __name__ == "__main__":
    app()
