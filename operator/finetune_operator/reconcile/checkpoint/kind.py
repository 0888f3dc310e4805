# SPDX-License-Identifier: Apache-2.0
"""The kind Checkpoint."""

from collections.abc import Iterator
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.engine.cache_memory import CompressionPolicy
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.checkpoint.reconciler import reconcile
from finetune_operator.reconcile.inputs.indexes import (
    BY_CHECKPOINT,
    BY_CONTENT,
    BY_DIGEST,
    BY_LINE,
    BY_PARENT,
    address,
    by_digest,
    has_ended,
    key_of,
)
from finetune_operator.reconcile.kind_table import (
    Change,
    IndexedObjects,
    KindRow,
    LockName,
    has_conditions,
    indexed_keys,
)
from finetune_operator.reconcile.records import deletion


def _relations(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """Objects that depend on this Checkpoint itself.

    `scheduling.affected_by_champion` has those of a new champion.
    """
    spec, here = change.known["spec"], address(change.namespace, change.name)
    yield Key(FineTuneJob.__name__, change.namespace, spec["lineage"]["job"]["name"])
    yield from indexed_keys(objects, BY_PARENT, here)
    yield from indexed_keys(objects, BY_CONTENT, here, InferenceDeployment)
    yield from (key_of(each) for each in objects.indexed(BY_CHECKPOINT, here) if not has_ended(each))
    if objects.checkpoints(change.namespace).champion_name(spec["modelLine"]) == change.name:
        # Followers serve it only if its scores and its approval allow it.
        line = address(change.namespace, spec["modelLine"])
        yield from indexed_keys(objects, BY_LINE, line, InferenceDeployment)


def _line_lock(key: Key, objects: IndexedObjects) -> LockName | None:
    """A line promotes its Checkpoints one by one.

    Two promotions at the same time would both compare with the champion that the first of them replaces. The
    Checkpoint is not read: a line may have thousands, of which all but one wait.
    """
    model_line = objects.checkpoints(key.namespace).line_of(key.name)
    return None if model_line is None else ("model line", key.namespace, model_line)


def _without_loss_curve(checkpoint: Manifest) -> Manifest:
    """The loss curve is most of a Checkpoint, and only users read it."""
    spec = {name: value for name, value in checkpoint.get("spec", {}).items() if name != "lossCurve"}
    return checkpoint | {"spec": spec}


KIND: Final = KindRow(
    model=Checkpoint,
    reconcile=reconcile,
    own_needs=deletion.needs,
    relations=_relations,
    own_indexers={BY_DIGEST: by_digest},
    lock=_line_lock,
    cached=_without_loss_curve,
    compression=CompressionPolicy(has_conditions),
    is_record=True,
    is_listed_first=True,
)
