"""python -m tools.images build|refs"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from tools.cluster.errors import ClusterError
from tools.images.build import build, references
from tools.images.errors import ImageError
from tools.images.references import Variant

app = typer.Typer(
    help="Container images of the operator and the trainer.", no_args_is_help=True, add_completion=False
)


@contextmanager
def report_failures() -> Iterator[None]:
    """Turn what a user can mend into a message and exit code 1."""
    try:
        yield
    except (ImageError, ClusterError, subprocess.CalledProcessError) as error:
        print(f"images: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@app.command(name="build")
def build_command(
    variant: Variant = Variant.CPU,
    release: Annotated[
        bool, typer.Option("--release", help="Refuse a base image that is not named by its digest.")
    ] = False,
) -> None:
    """Build both images and hand them to the local cluster, or push them to the registry IMAGE_REGISTRY.

    Prints their names as JSON, and how large they are beside their budgets; writes their bills of materials
    into build/sbom. Builds nothing that is there already.
    """
    with report_failures():
        built = build(variant, release=release)
        print(*built.sizes, sep="\n", file=sys.stderr)
        print(json.dumps(built.names._asdict()))


@app.command()
def refs(variant: Variant = Variant.CPU) -> None:
    """Print the names that the images of the present sources have, as JSON: {"operator": …, "trainer": …}."""
    with report_failures():
        print(json.dumps(references(variant)._asdict()))


if __name__ == "__main__":
    app()
