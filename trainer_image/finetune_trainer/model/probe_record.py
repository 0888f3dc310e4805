# SPDX-License-Identifier: Apache-2.0
"""The record of a probe: what trained weights predicted after a few fixed prompts when they were published.

The tolerance is how much predictions may differ from their record, by what computed them. docs/decisions/0038
has the measurements of the Transformers engine, docs/endpoints.md those of vLLM.

Does not import PyTorch: a serving pod reads the record in processes that do not have ours, and vLLM's process
has another version.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_trainer.contract.serving import EngineName

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


class Computation(NamedTuple):
    """What computes predictions."""

    engine: EngineName
    device: str
    """Type of the device: cpu or cuda."""
    dtype: str
    """Dtype of the matrix products, such as float32."""
    quantized: bool
    """Whether the base model is quantized."""


NO_CHANGE_NATS: Final[Mapping[str, float]] = {"float32": 1e-5}
"""Largest difference between the log-probabilities of an adapter without effect and of its base model.

0 for other dtypes: their rounding cannot be distinguished from a weak adapter, and LoRA without effect is
exact.
"""
TOLERANCES: Final[Mapping[tuple[EngineName, str, str], float]] = {
    ("Transformers", "cpu", "float32"): 1e-3,
    ("Transformers", "cpu", "bfloat16"): 0.5,
    ("VLLM", "cpu", "float32"): 1e-3,
}
"""Largest difference in nats from a record of the trainer, by engine, device and dtype.

At least twice what rounding caused.
"""
UNMEASURED_TOLERANCE: Final = 0.5
"""Where the tolerance was not measured. A larger difference is reported, and stops nothing."""

_BY_PRECISION: Final = ("float64", "float32", "float16", "bfloat16")


def find_tolerance(record: ProbeRecord, computation: Computation) -> float | None:
    """The measured tolerance, in nats; None if there is none for this record and this computation."""
    if record.device != computation.device or record.quantized or computation.quantized:
        return None
    dtypes = (record.dtype, computation.dtype)
    if not set(dtypes) <= set(_BY_PRECISION):
        return None
    coarser = max(dtypes, key=_BY_PRECISION.index)
    return TOLERANCES.get((computation.engine, computation.device, coarser))


def describe_mismatch(record: ProbeRecord, computation: Computation, version: str, difference: float) -> str:
    """Describe a difference that is too large. `version`: that of the engine."""
    recorded = f"{record.dtype} on {record.device} by {record.engine} {record.engine_version}"
    here = f"{computation.dtype} on {computation.device} by {computation.engine} {version}"
    return (
        f"the weights do not predict what was recorded when they were published: log-probabilities differ by"
        f" up to {difference:.3g} nats ({recorded}; now {here})"
    )
