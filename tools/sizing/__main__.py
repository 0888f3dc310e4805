# SPDX-License-Identifier: Apache-2.0
"""python -m tools.sizing [MODEL ...] [--page]"""

from importlib.metadata import version
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.page import put
from tools.bootstrap.uv import ROOT
from tools.sizing import accuracy, table
from tools.sizing.table import SHAPES

PAGE: Final = ROOT / "docs" / "sizing.md"
BEGIN_SIZES: Final = "<!-- Sizes, written by make sizing from here -->"
BEGIN_ACCURACY: Final = "<!-- Accuracy, written by make sizing from here -->"

app = typer.Typer(add_completion=False)


@app.command()
def sizing(
    models: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(SHAPES)}.")] = None,
    page: Annotated[bool, typer.Option("--page", help="Replace the tables in docs/sizing.md.")] = False,
) -> None:
    """Predict the memory and the speed of training, and compare predictions with real steps on this CPU."""
    console = Console(highlight=False)
    rows = []
    for name in models or SHAPES:
        for method in table.SIZED_METHODS:
            with console.status(f"{name} {method.label}", refresh_per_second=1):
                rows.append(table.model_row(name, SHAPES[name](), method))
    sizes = table.sheet(rows)
    console.print(sizes.to_terminal())
    compared = accuracy.sheet()
    console.print(compared.to_terminal())
    if page:
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
        put(PAGE, BEGIN_SIZES, [sizes], packages)
        put(PAGE, BEGIN_ACCURACY, [compared], packages)


if __name__ == "__main__":
    app()
