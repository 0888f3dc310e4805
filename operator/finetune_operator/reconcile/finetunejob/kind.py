# SPDX-License-Identifier: Apache-2.0
"""The kind FineTuneJob."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.engine.cache_memory import CompressionPolicy
from finetune_operator.manifests.labels import RECORDED_RUN
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.finetunejob.reconciler import needs, reconcile
from finetune_operator.reconcile.inputs.indexes import (
    BY_DATASET,
    BY_LINE,
    BY_PARENT,
    BY_PROFILE,
    BY_STATE,
    OVER_BUDGET,
    PARTLY_SCHEDULED,
    address,
    compared_champion,
    has_ended,
    namespace_of,
    needed_contents,
    profile_of_compute,
    read_conditions,
    read_resolved,
    read_spec,
    read_status,
    waits_for_budget,
)
from finetune_operator.reconcile.kind_table import (
    Change,
    IndexedObjects,
    KindRow,
    budget_lock,
    is_ended,
    record_key,
)
from finetune_operator.status.reasons import ConditionType, Reason


def _relations(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    return map(record_key, objects.checkpoints(change.namespace).of_run(change.known["metadata"]["uid"]))


def _contents(job: Manifest) -> frozenset[str]:
    if has_ended(job):
        return frozenset()
    spec, resolved = read_spec(job), read_resolved(job)
    made, live = read_status(job).get("checkpoints", ()), compared_champion(job)
    ref, evaluated = _references(spec)
    return needed_contents(
        job,
        [
            resolved.get("datasetDigest"),
            resolved.get("evaluationDatasetDigest"),
            resolved.get("parentDigest"),
            live.get("digest"),
            *(each.get("digest") for each in made),
        ],
        [
            live.get("checkpoint"),
            resolved.get("datasetVersion"),
            resolved.get("evaluationDatasetVersion"),
            resolved.get("parentCheckpoint"),
            ref.get("version"),
            evaluated.get("version"),
            spec.get("baseModel", {}).get("checkpoint"),
            *(each.get("name") for each in made),
        ],
    )


def _references(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Datasets that a run trains on and is evaluated on; empty where it names none."""
    evaluated = (spec.get("evaluation") or {}).get("dataset") or {}
    return spec.get("dataset", {}).get("ref") or {}, evaluated.get("ref") or {}


def _by_dataset(job: Manifest) -> Iterator[str]:
    if has_ended(job):
        return
    fields = ("datasetVersion", "evaluationDatasetVersion")
    for ref, field in zip(_references(read_spec(job)), fields, strict=True):
        if ref.get("name") and not read_resolved(job).get(field):
            yield address(namespace_of(job), ref["name"])


def _by_parent(job: Manifest) -> Iterator[str]:
    name = read_spec(job).get("baseModel", {}).get("checkpoint") if not has_ended(job) else None
    if name and not read_resolved(job).get("parentDigest"):
        yield address(namespace_of(job), name)


def _by_line(job: Manifest) -> Iterable[str]:
    if has_ended(job):
        return ()
    spec, waits = read_spec(job), not read_resolved(job).get("baseModelUri")
    champion = (spec.get("baseModel", {}).get("champion") or {}) if waits else {}
    lines = {spec.get("modelLine"), champion.get("modelLine")}
    return [address(namespace_of(job), line) for line in lines if line]


def _by_profile(job: Manifest) -> Iterable[str]:
    if has_ended(job):
        return ()
    evaluated_on = (read_spec(job).get("evaluation") or {}).get("profile")
    return {profile_of_compute(job), *filter(None, (evaluated_on, read_resolved(job).get("profile")))}


def _by_state(job: Manifest) -> Iterator[str]:
    several = (read_spec(job).get("compute") or {}).get("nodes", 1) > 1
    if several and (ConditionType.RECONCILING, "True", Reason.UNSCHEDULABLE) in read_conditions(job):
        yield PARTLY_SCHEDULED
    if waits_for_budget(job):
        yield OVER_BUDGET


def _awaited_budget(job: Manifest) -> str | None:
    if "deletionTimestamp" in job["metadata"] or not waits_for_budget(job):
        return None
    is_trained = any(state[:2] == (ConditionType.TRAINED, "True") for state in read_conditions(job))
    evaluated_on = (read_spec(job).get("evaluation") or {}).get("profile") if is_trained else None
    return evaluated_on or read_resolved(job).get("profile") or profile_of_compute(job)


def _phase(job: Manifest) -> str:
    phase: str = read_status(job).get("phase") or "Pending"
    return phase


def _needs_no_lists(job: Manifest) -> bool:
    """Whether the run has made no Checkpoint, and continues from none, which may be a champion.

    It must not wait for its first Job while a long history is listed.
    """
    made = read_status(job).get("checkpoints") or RECORDED_RUN in (job["metadata"].get("annotations") or {})
    return not made and not {"checkpoint", "champion"} & read_spec(job).get("baseModel", {}).keys()


KIND: Final = KindRow(
    model=FineTuneJob,
    reconcile=reconcile,
    own_needs=needs,
    relations=_relations,
    own_indexers={
        BY_DATASET: _by_dataset,
        BY_PARENT: _by_parent,
        BY_LINE: _by_line,
        BY_PROFILE: _by_profile,
        BY_STATE: _by_state,
    },
    contents=_contents,
    lock=budget_lock,
    awaited_budget=_awaited_budget,
    compression=CompressionPolicy(is_ended, _phase),
    needs_no_lists=_needs_no_lists,
    workload="run",
    has_progress=True,
)
