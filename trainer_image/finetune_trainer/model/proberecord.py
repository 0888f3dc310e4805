"""The record of a probe: what trained weights predicted after a few fixed prompts when they were published.

Does not import PyTorch: a serving pod reads the record in processes that do not have ours.
"""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

PROBE_FILE: Final = "probe.json"
"""Name of the record in its folder."""


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
