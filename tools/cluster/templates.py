# SPDX-License-Identifier: Apache-2.0
"""Fill the configuration templates of this package with a cluster's values."""

from pathlib import Path
from string import Template
from typing import Final

_FOLDER: Final = Path(__file__).parent / "templates"


def render(template: str, **values: object) -> str:
    """The text of templates/<template> with every `${name}` replaced.

    Raises:
        KeyError: a value of the template is missing.
    """
    return Template((_FOLDER / template).read_text()).substitute(values)
