# SPDX-License-Identifier: Apache-2.0
"""The kind DatasetVersion."""

from collections.abc import Iterator
from typing import Final

from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.engine.cache_memory import CompressionPolicy
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.datasetversion.reconciler import reconcile
from finetune_operator.reconcile.inputs.indexes import (
    BY_DATASET,
    BY_DATASET_OF,
    BY_DIGEST,
    address,
    by_digest,
    owner_of_version,
)
from finetune_operator.reconcile.kind_table import (
    Change,
    IndexedObjects,
    KindRow,
    has_conditions,
    indexed_keys,
)
from finetune_operator.reconcile.records import deletion


def _relations(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    dataset = address(change.namespace, change.known["spec"]["dataset"])
    return indexed_keys(objects, BY_DATASET, dataset)


def _by_dataset_of(version: Manifest) -> Iterator[str]:
    yield owner_of_version(version)


KIND: Final = KindRow(
    model=DatasetVersion,
    reconcile=reconcile,
    own_needs=deletion.needs,
    relations=_relations,
    own_indexers={BY_DIGEST: by_digest, BY_DATASET_OF: _by_dataset_of},
    compression=CompressionPolicy(has_conditions),
    is_record=True,
    is_listed_first=True,
)
