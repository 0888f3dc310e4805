# SPDX-License-Identifier: Apache-2.0
"""python -m tools.models gemma|tiny"""

from enum import StrEnum

import typer

from tools.models.gemma import gemma
from tools.models.tiny import tiny


class DemoModel(StrEnum):
    GEMMA = "gemma"
    TINY = "tiny"


BUILDERS = {DemoModel.GEMMA: gemma, DemoModel.TINY: tiny}


def main(model: DemoModel) -> None:
    """Build MODEL unless the cache has it, and print the path of its folder."""
    print(BUILDERS[model]())


if __name__ == "__main__":
    typer.run(main)
