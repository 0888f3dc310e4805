"""The configuration files of this package, with this cluster's values filled in."""

from pathlib import Path
from string import Template
from typing import Final

_FOLDER: Final = Path(__file__).parent / "templates"


def render(template: str, **values: object) -> str:
    """The text of templates/<template> with every `${name}` replaced.

    Raises:
        KeyError: the template names a value that was not given.
    """
    return Template((_FOLDER / template).read_text()).substitute(values)
