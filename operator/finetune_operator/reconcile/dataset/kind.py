# SPDX-License-Identifier: Apache-2.0
"""The kind Dataset."""

from collections.abc import Iterator
from typing import Final

from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.dataset.reconciler import needs, reconcile
from finetune_operator.reconcile.inputs.indexes import (
    BY_DATASET,
    BY_STATE,
    UNSETTLED,
    address,
    read_conditions,
    read_status,
)
from finetune_operator.reconcile.kind_table import Change, IndexedObjects, KindRow, indexed_keys, is_live
from finetune_operator.status.conditions import ends_dataset


def _relations(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    yield from indexed_keys(objects, BY_DATASET, address(change.namespace, change.name))
    latest = read_status(change.known).get("latestVersion")
    if latest:
        yield Key(DatasetVersion.__name__, change.namespace, latest)


def _by_state(dataset: Manifest) -> Iterator[str]:
    current = read_status(dataset).get("observedGeneration") == dataset["metadata"].get("generation", 0)
    if not (current and any(ends_dataset(*state) for state in read_conditions(dataset))):
        yield UNSETTLED


KIND: Final = KindRow(
    model=Dataset,
    reconcile=reconcile,
    own_needs=needs,
    relations=_relations,
    own_indexers={BY_STATE: _by_state},
    needs_no_lists=is_live,
    has_progress=True,
)
