"""Folders of a serving pod in addition to those of its models, whose names cannot begin with a dot."""

import logging
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from finetune_trainer.model.proberecord import PROBE_FILE, ProbeRecord

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
    try:
        return ProbeRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        logger.warning("%s has another format, and is not compared: %s", path, error)
        return None
