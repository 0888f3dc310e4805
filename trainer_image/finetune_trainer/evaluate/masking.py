# SPDX-License-Identifier: Apache-2.0
"""Hides secrets and personal data in what people read of an evaluation, as the report of the data does."""

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.dataset import Checks
from finetune_trainer.data.checks.scanner import Scanner
from finetune_trainer.evaluate.checks.memorization import sensitive_hashes
from finetune_trainer.store import Store


def page_scanner(store: Store, dataset: Digest) -> Scanner:
    """The scanner with the checks of the dataset; with the default ones if prepare recorded none.

    Raises StageFailure (ARTIFACT_CORRUPT, STORE_UNAVAILABLE), Preempted.
    """
    known = sensitive_hashes(store, dataset)
    return Scanner(Checks() if known is None else known.checks)
