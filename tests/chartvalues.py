# SPDX-License-Identifier: Apache-2.0
"""Values of the chart in the commands of the documentation."""

import shlex
from itertools import pairwise

from tests.docsblocks import blocks


def documented(page: str, words: str) -> str:
    """The one block of commands of a page of the documentation that has these words."""
    (found,) = (block.text for block in blocks() if block.page.name == page and words in block.text)
    return found


def documented_values() -> list[str]:
    """Values of the chart, NAME=VALUE, with which docs/metrics.md installs monitors and rules."""
    arguments = shlex.split(documented("metrics.md", "monitors.enabled=true"))
    return [value for option, value in pairwise(arguments) if option == "--set"]
