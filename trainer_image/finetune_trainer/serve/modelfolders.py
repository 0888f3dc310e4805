# SPDX-License-Identifier: Apache-2.0
"""Folders of a serving pod in addition to those of its models, whose names cannot begin with a dot."""

import logging
from pathlib import Path
from typing import Final

from finetune_trainer.model.probe_record import PROBE_FILE, ProbeRecord, read_record

_PROBES: Final = ".probes"

logger = logging.getLogger(__name__)


def probe_folder(models: Path, folder: str) -> Path:
    """Folder with the record of the probe of the model in `folder`. Absent if the model has none."""
    return models / _PROBES / folder


def probe_record(models: Path, folder: str) -> ProbeRecord | None:
    """What the model in `folder` predicted when it was published; None if that is not known."""
    path = probe_folder(models, folder) / PROBE_FILE
    if not path.is_file():
        logger.info("%s has no record of a probe", folder)
        return None
    return read_record(path.parent, path)
