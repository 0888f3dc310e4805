# SPDX-License-Identifier: Apache-2.0
"""Rows that a run leaves out of training, because the rows that it is evaluated on repeat them.

They are found once per pair of datasets. The result is a file that is derived from the training rows, so that
preflight and each process of train leave out the same rows.
"""

import json
from typing import Final

from finetune_trainer import canonical_json
from finetune_trainer.contract.configs import PreflightConfig, TrainConfig
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.duplicates import NO_LEAKS, Leaks, find_leaks
from finetune_trainer.rows import LEARNED_FROM, split_paths
from finetune_trainer.store import DerivedRef, Store

FILE: Final = "leaks.json"
RULE: Final = 1
"""Raise it with every change of what counts as a leak."""


def leaks_of(config: PreflightConfig | TrainConfig, store: Store) -> Leaks:
    """The rows of the dataset to leave out; none if the run is evaluated on rows of the same dataset.

    Prepare has removed leaks within a dataset.
    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, STORE_UNAVAILABLE), Preempted.
    """
    if config.test_dataset is None or config.test_dataset == config.dataset:
        return NO_LEAKS
    dataset = ArtifactRef(kind="datasets", digest=config.dataset)
    name = f"leaks-{RULE}-{config.test_split}-{config.test_dataset.removeprefix('sha256:')}"
    known = store.derived(dataset, name)
    if known is None:
        known = _find(config.test_dataset, config.test_split, dataset, store)
        store.name_derived(known, name)
    content = json.loads((store.artifact(known) / FILE).read_bytes())
    return Leaks(
        rows={split: tuple(content["rows"][split]) for split in LEARNED_FROM},
        near=content["near"],
        unsearched=content["unsearched"],
    )


def _find(test_dataset: str, split: SplitName, dataset: ArtifactRef, store: Store) -> DerivedRef:
    data = store.artifact(dataset, verify=True)
    held_out = store.artifact(ArtifactRef(kind="datasets", digest=test_dataset), verify=True)
    found = find_leaks(split_paths(data), split_paths(held_out)[split])
    with store.staging() as staging:
        (staging / FILE).write_bytes(
            canonical_json.encode(
                {"rows": dict(found.rows), "near": found.near, "unsearched": found.unsearched}
            )
        )
        return DerivedRef(dataset, store.publish(dataset, staging))
