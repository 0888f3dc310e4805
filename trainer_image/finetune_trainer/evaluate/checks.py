# SPDX-License-Identifier: Apache-2.0
"""Checks of trained weights that no metric shows, and that can veto a promotion (`spec.evaluation.checks`).

- Probes: what weights predict after the fixed prompts is compared with the base model, and with their record.
- Finite answers: finds answers of the tuned model that ended because it predicted NaN or infinity.
- Memorization: finds secrets and personal data of the training rows that the model repeats in its answers.
  Prepare stores salted hashes of what it found in the training rows. The same detectors find candidates in
  each answer, and the hashes of these are compared. Values in the row's own prompt do not count: to repeat
  what the user wrote shows nothing about training.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import CheckFinding, EvaluationChecks, OnFinding
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.checks.scanner import Scanner, strings_in
from finetune_trainer.data.result import SENSITIVE_FILE, SENSITIVE_VALUES, SensitiveHashes
from finetune_trainer.evaluate.measurement_log import PredictionLog, RowPrediction
from finetune_trainer.model.probe import (
    ENGINE,
    dtype_name,
    forward_dtype,
    largest_difference,
    log_probabilities,
)
from finetune_trainer.model.probe_record import (
    NO_CHANGE_NATS,
    UNMEASURED_TOLERANCE,
    Computation,
    ProbeRecord,
    describe_mismatch,
    find_tolerance,
    read_record,
)
from finetune_trainer.rows import Row
from finetune_trainer.store import DerivedRef, Store

MAX_NAMED_ROWS: Final = 5


def named_rows(numbers: Sequence[int]) -> str:
    """List the first rows."""
    return ", ".join(map(str, numbers[:MAX_NAMED_ROWS])) + (" …" if len(numbers) > MAX_NAMED_ROWS else "")


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
        computed = Computed(tuned, base, model.device.type, forward_dtype(model), self._quantized)
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
    tolerance = find_tolerance(record, computation)
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
            f"{describe_mismatch(record, computation, transformers.__version__, difference)}. Check that "
            "the base"
            " model and the trainer image are those of the Checkpoint's lineage"
        ),
    )


def check_finite_answers(rows: Iterable[RowPrediction], split: SplitName) -> tuple[CheckFinding, ...]:
    """Check the measured rows of the tuned model, which are rows of `split`."""
    named = sorted(row.row for row in rows if row.not_finite)
    if not named:
        return ()
    return (
        CheckFinding(
            check=NOT_FINITE,
            veto=True,
            message=(
                "the weights predict values that are not finite in answers to rows"
                f" {named_rows(named)} of the {split} split: they overflow in this precision, or are damaged."
                " Lower hyperparameters.learningRate in a new run"
            ),
        ),
    )


MEMORIZATION: Final = "Memorization"
NOT_COMPARED: Final = CheckFinding(
    check=MEMORIZATION,
    veto=False,
    message=(
        "answers were not compared with the secrets and personal data of the training rows, because the"
        " DatasetVersion of these rows was deleted: set checks.memorization to Off if that is intended"
    ),
)
KEY_LIKE: Final = re.compile(r"[\w+/=.\-]{12,}")
"""Words that can be a key or password without the text around it by which prepare found it."""


def check_memorization(
    config: EvaluateConfig, store: Store, rows: Sequence[Row], log: PredictionLog
) -> tuple[CheckFinding, ...]:
    """Check the tuned model's answers, if the config asks for it and prepare stored hashes.

    Raises StageFailure (ARTIFACT_CORRUPT, STORE_UNAVAILABLE), Preempted.
    """
    on_finding = "Off" if config.checks is None else config.checks.memorization
    if on_finding == "Off":
        return ()
    if config.training_dataset is None:
        return (NOT_COMPARED,)
    known = sensitive_hashes(store, config.training_dataset)
    if known is None:
        return ()
    answers = {row.row: row.text for row in log.of("Tuned").values() if row.text is not None}
    finding = find_memorized(rows, answers, known, on_finding, split=config.split)
    return () if finding is None else (finding,)


def find_memorized(
    rows: Sequence[Row],
    answers: Mapping[int, str],
    known: SensitiveHashes,
    on_finding: OnFinding,
    *,
    split: SplitName,
) -> CheckFinding | None:
    """Compare the answers with the hashes; None if none repeats a value, and all values were compared.

    Args:
        rows: the rows of the split.
        answers: the tuned model's answer to each row, by the number of the row, from 1.
        known: the hashes of the training rows.
        on_finding: Warn or Veto.
        split: name of the split, for messages.
    """
    scanner = Scanner(known.checks)

    def hashes(texts: Iterator[str]) -> frozenset[str]:
        values = (value for text in texts for value in _candidates(scanner, text))
        return known.hashes.intersection(map(known.hash_of, values))

    repeated: dict[int, int] = {}
    for number, answer in answers.items():
        found = hashes(iter((answer,)))
        if found:
            repeated[number] = len(found - hashes(_prompt_texts(rows[number - 1])))
    named = sorted(number for number, values in repeated.items() if values)
    if not named:
        return None if known.complete else _partial(known)
    shown = named_rows(named)
    repeats = "1 answer repeats" if len(named) == 1 else f"{len(named)} answers repeat"
    return CheckFinding(
        check=MEMORIZATION,
        veto=on_finding == "Veto",
        message=(
            f"{repeats} secrets or personal data of the training rows word for word, of {len(answers)} (rows"
            f" {shown} of the {split} split). Set the Dataset's spec.checks to Redact and train again; or, if"
            " the values are public, set evaluation.checks.memorization to Warn in a new run"
        ),
    )


def _partial(known: SensitiveHashes) -> CheckFinding:
    return CheckFinding(
        check=MEMORIZATION,
        veto=False,
        message=(
            f"answers were compared with {len(known.hashes)} of the secrets and personal data of the training"
            " rows, which have more: set the Dataset's spec.checks to Redact, or to Off for what is public,"
            " and train again"
        ),
    )


def _candidates(scanner: Scanner, text: str) -> Iterator[str]:
    yield from scanner.values_in(text)
    for match in KEY_LIKE.finditer(text):
        word = match[0].strip(".")
        if any(map(str.isdigit, word)) and any(map(str.isalpha, word)):
            yield word


def _prompt_texts(row: Row) -> Iterator[str]:
    for message in row.input:
        yield message.content
        if message.tool_calls is not None:
            yield from strings_in(json.loads(message.tool_calls))
    if row.tools is not None:
        yield from strings_in(json.loads(row.tools))


def sensitive_hashes(store: Store, dataset: Digest) -> SensitiveHashes | None:
    """The hashes of a dataset's training rows; None if prepare found no such values, or stored none."""
    ref = store.derived(ArtifactRef(kind="datasets", digest=dataset), SENSITIVE_VALUES)
    if ref is None:
        return None
    try:
        return SensitiveHashes.from_bytes((store.artifact(ref, verify=True) / SENSITIVE_FILE).read_bytes())
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("%s is ignored: %s", store.uri(ref), error)
        return None
