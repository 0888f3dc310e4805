"""Folders of a serving pod in addition to those of its models, whose names cannot begin with a dot."""

from pathlib import Path
from typing import Final

_PROBES: Final = ".probes"


def probe_folder(models: Path, folder: str) -> Path:
    """Folder with the record of the probe of the model in `folder`. Absent if the model has none."""
    return models / _PROBES / folder
