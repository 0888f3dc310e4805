# SPDX-License-Identifier: Apache-2.0
"""Publishes the hashes of a dataset's secrets and personal data."""

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.data.checks.scanner import SENSITIVE_FILE, SENSITIVE_VALUES, SensitiveHashes
from finetune_trainer.store import DerivedRef, Store


def publish_hashes(store: Store, dataset: Digest, sensitive: SensitiveHashes) -> None:
    """Publish the hashes as derived from the dataset, so that its digest does not depend on them.

    Those of the newest preparation count. A dataset that never had any gets no file.
    Raises StageFailure (STORE_UNAVAILABLE).
    """
    of = ArtifactRef(kind="datasets", digest=dataset)
    if not sensitive.hashes and store.derived(of, SENSITIVE_VALUES) is None:
        return
    with store.staging() as staging:
        (staging / SENSITIVE_FILE).write_bytes(sensitive.to_bytes())
        ref = DerivedRef(of, store.publish(of, staging))
    store.name_derived(ref, SENSITIVE_VALUES)
