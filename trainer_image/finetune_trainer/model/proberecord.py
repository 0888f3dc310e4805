# SPDX-License-Identifier: Apache-2.0
"""The record of a probe: what trained weights predicted after a few fixed prompts when they were published.

Does not import PyTorch: a serving pod reads the record in processes that do not have ours.
"""

import logging
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

PROBE_FILE: Final = "probe.json"
"""Name of the record in its folder."""

logger = logging.getLogger(__name__)


class TopTokens(BaseModel):
    """The most likely tokens after one prompt, the most likely one first."""

    model_config = ConfigDict(frozen=True)

    ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """In nats."""


class ProbeRecord(BaseModel):
    """The predictions of published weights, and how they were computed."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    engine: str
    engine_version: str
    device: str
    """Type of the device: cpu or cuda."""
    dtype: str
    """The less precise of the dtype of the pass and that of the published weights."""
    quantized: bool
    """Whether the base model was in 4 bits."""
    prompts: tuple[tuple[int, ...], ...]
    """Token ids of each prompt."""
    tuned: tuple[TopTokens, ...]
    base: tuple[TopTokens, ...] = ()
    """The same without the adapter; empty for weights of a whole model."""


def read_record(folder: Path, named: object) -> ProbeRecord | None:
    """The record in a folder; None if it has another format, which is logged with the name of its place.

    Raises OSError.
    """
    try:
        return ProbeRecord.model_validate_json((folder / PROBE_FILE).read_bytes())
    except ValidationError as error:
        logger.warning("%s has another format, and is not compared: %s", named, error)
        return None


def write_record(record: ProbeRecord, folder: Path) -> None:
    """Write the record into a folder. Raises OSError."""
    (folder / PROBE_FILE).write_text(record.model_dump_json() + "\n", encoding="utf-8")
