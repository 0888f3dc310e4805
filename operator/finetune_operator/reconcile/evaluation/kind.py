# SPDX-License-Identifier: Apache-2.0
"""The kind Evaluation."""

from collections.abc import Iterable, Iterator
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.engine.cache_memory import CompressionPolicy
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.evaluation.reconciler import needs, reconcile
from finetune_operator.reconcile.inputs.indexes import (
    BY_CHECKPOINT,
    BY_DATASET,
    BY_PROFILE,
    BY_STATE,
    DEFAULT_PROFILE,
    OVER_BUDGET,
    address,
    compared_champion,
    has_ended,
    namespace_of,
    needed_contents,
    read_resolved,
    read_spec,
    read_status,
    waits_for_budget,
)
from finetune_operator.reconcile.kind_table import Change, IndexedObjects, KindRow, budget_lock, is_ended


def _relations(change: Change, _: IndexedObjects) -> Iterator[Key]:
    """The Checkpoints that take its scores."""
    before, after = _scores(change.old), _scores(change.new)
    for each in after:
        if each not in before:
            yield Key(Checkpoint.__name__, change.namespace, each["checkpoint"])


def _scores(evaluation: Manifest | None) -> list[dict[str, str]]:
    scores: list[dict[str, str]] = read_status(evaluation or {}).get("evaluations", [])
    return scores


def _contents(evaluation: Manifest) -> frozenset[str]:
    if has_ended(evaluation):
        return frozenset()
    spec, resolved = read_spec(evaluation), read_resolved(evaluation)
    live = compared_champion(evaluation)
    return needed_contents(
        evaluation,
        [resolved.get("datasetDigest"), live.get("digest"), *resolved.get("checkpointDigests", ())],
        [
            resolved.get("datasetVersion"),
            spec["dataset"]["ref"].get("version"),
            live.get("checkpoint"),
            *spec["checkpoints"],
        ],
    )


def _by_checkpoint(evaluation: Manifest) -> Iterator[str]:
    for name in read_spec(evaluation)["checkpoints"]:
        yield address(namespace_of(evaluation), name)


def _by_dataset(evaluation: Manifest) -> Iterator[str]:
    if not has_ended(evaluation) and not read_resolved(evaluation).get("datasetVersion"):
        yield address(namespace_of(evaluation), read_spec(evaluation)["dataset"]["ref"]["name"])


def _by_profile(evaluation: Manifest) -> Iterable[str]:
    if has_ended(evaluation):
        return ()
    return {_profile(evaluation), *filter(None, [read_resolved(evaluation).get("profile")])}


def _by_state(evaluation: Manifest) -> Iterator[str]:
    if waits_for_budget(evaluation):
        yield OVER_BUDGET


def _awaited_budget(evaluation: Manifest) -> str | None:
    if "deletionTimestamp" in evaluation["metadata"] or not waits_for_budget(evaluation):
        return None
    return read_resolved(evaluation).get("profile") or _profile(evaluation)


def _profile(evaluation: Manifest) -> str:
    return read_spec(evaluation).get("profile") or DEFAULT_PROFILE


def _find_newest_measurement(evaluation: Manifest) -> str:
    """Time of the newest scores of the Evaluation; empty if it has none."""
    scores = read_status(evaluation).get("evaluations") or ()
    return max((entry.get("measuredAt") or "" for entry in scores), default="")


KIND: Final = KindRow(
    model=Evaluation,
    reconcile=reconcile,
    own_needs=needs,
    relations=_relations,
    own_indexers={
        BY_CHECKPOINT: _by_checkpoint,
        BY_DATASET: _by_dataset,
        BY_PROFILE: _by_profile,
        BY_STATE: _by_state,
    },
    contents=_contents,
    lock=budget_lock,
    awaited_budget=_awaited_budget,
    compression=CompressionPolicy(is_ended, _find_newest_measurement),
    workload="evaluation",
    has_progress=True,
)
