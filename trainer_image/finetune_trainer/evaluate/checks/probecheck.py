# SPDX-License-Identifier: Apache-2.0
"""Compares what weights predict after the fixed prompts with the base model, and with their record."""

import logging
from dataclasses import dataclass
from typing import Final

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import CheckFinding, EvaluationChecks
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.model.probe import (
    ENGINE,
    dtype_name,
    largest_difference,
    log_probabilities,
    pass_dtype,
)
from finetune_trainer.model.probe_record import (
    NO_CHANGE_NATS,
    UNMEASURED_TOLERANCE,
    Computation,
    ProbeRecord,
    mismatch,
    read_record,
    tolerance_of,
)
from finetune_trainer.store import DerivedRef, Store

NOT_FINITE: Final = "NotFinite"
NO_CHANGE: Final = "NoChange"
PROBE_MISMATCH: Final = "ProbeMismatch"

logger = logging.getLogger(__name__)


class ProbeCheck:
    """Compares a loaded checkpoint, unless it has no record or the operator knows no checks."""

    def __init__(self, config: EvaluateConfig, store: Store) -> None:
        """Read the record. Raises StageFailure (ARTIFACT_CORRUPT, STORE_UNAVAILABLE), Preempted."""
        self._checks = config.checks
        self._quantized = config.quantized_base
        self._record = _record(config, store) if config.checks is not None else None
        self.findings: tuple[CheckFinding, ...] = ()
        self.is_pending = self._record is not None
        """Whether a checkpoint has still to be compared."""

    def run(self, model: PreTrainedModel | PeftModel, pad_token_id: int) -> None:
        """Compare the checkpoint with its record and, if it is an adapter, with its base model."""
        if not self.is_pending or self._record is None or self._checks is None:
            return
        prompts, base = self._record.prompts, None
        tuned = log_probabilities(model, prompts, pad_token_id)
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                base = log_probabilities(model, prompts, pad_token_id)
        computed = Computed(tuned, base, model.device.type, pass_dtype(model), self._quantized)
        self.findings = compare(self._record, computed, self._checks)
        self.is_pending = False


@dataclass(frozen=True)
class Computed:
    """What a loaded checkpoint predicts after the prompts of its record."""

    tuned: Tensor
    """Log-probabilities of shape (prompts, vocabulary), in float32."""
    base: Tensor | None
    """Those of the base model; None if the checkpoint is a whole model."""
    device: str
    """Type of the device."""
    dtype: torch.dtype
    """Dtype of the matrix products."""
    quantized: bool
    """Whether the base model is in 4 bits."""


def compare(record: ProbeRecord, computed: Computed, checks: EvaluationChecks) -> tuple[CheckFinding, ...]:
    """What is wrong with a checkpoint; empty if nothing is."""
    if not bool(torch.isfinite(computed.tuned).all()):
        return (NOT_FINITE_FINDING,)
    findings = []
    computation = Computation(ENGINE, computed.device, dtype_name(computed.dtype), computed.quantized)
    if computed.base is not None and checks.no_change != "Off":
        change = float((computed.tuned - computed.base).abs().max())
        if change <= NO_CHANGE_NATS.get(computation.dtype, 0):
            findings.append(_no_change(veto=checks.no_change == "Veto"))
    difference = largest_difference(record.tuned, computed.tuned)
    tolerance = tolerance_of(record, computation)
    if difference > (UNMEASURED_TOLERANCE if tolerance is None else tolerance):
        findings.append(_mismatch(record, computation, difference, veto=tolerance is not None))
    return tuple(findings)


def _record(config: EvaluateConfig, store: Store) -> ProbeRecord | None:
    if config.probe is None:
        return None
    ref = DerivedRef(ArtifactRef(kind="checkpoints", digest=config.checkpoint), config.probe)
    if not store.has(ref):
        logger.warning("%s was deleted: the checkpoint is not compared with it", store.uri(ref))
        return None
    return read_record(store.artifact(ref, verify=True), store.uri(ref))


NOT_FINITE_FINDING: Final = CheckFinding(
    check=NOT_FINITE,
    veto=True,
    message=(
        "the weights predict values that are not finite: they overflow in this precision, or are damaged."
        " Lower hyperparameters.learningRate in a new run"
    ),
)


def _no_change(*, veto: bool) -> CheckFinding:
    return CheckFinding(
        check=NO_CHANGE,
        veto=veto,
        message=(
            "the adapter changes nothing: after the probe's prompts it predicts exactly what its base model"
            " does. Raise hyperparameters.learningRate or epochs in a new run, and check that its rows have"
            " answers to learn"
        ),
    )


def _mismatch(
    record: ProbeRecord, computation: Computation, difference: float, *, veto: bool
) -> CheckFinding:
    return CheckFinding(
        check=PROBE_MISMATCH,
        veto=veto,
        message=(
            f"{mismatch(record, computation, transformers.__version__, difference)}. Check that the base"
            " model and the trainer image are those of the Checkpoint's lineage"
        ),
    )
