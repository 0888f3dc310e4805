# SPDX-License-Identifier: Apache-2.0
"""Finds secrets and personal data of the training rows that the model repeats in its answers.

Prepare stores salted hashes of what it found in the training rows. The same detectors find candidates in each
answer, and the hashes of these are compared. Values in the row's own prompt do not count: to repeat what the
user wrote shows nothing about training.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import CheckFinding, OnFinding
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.checks.scanner import (
    SENSITIVE_FILE,
    SENSITIVE_VALUES,
    Scanner,
    SensitiveHashes,
    strings_in,
)
from finetune_trainer.evaluate.checks.namedrows import named_rows
from finetune_trainer.evaluate.predictions import PredictionLog
from finetune_trainer.rows import Row
from finetune_trainer.store import Store

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

logger = logging.getLogger(__name__)


def memorization_findings(
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
