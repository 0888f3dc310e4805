# SPDX-License-Identifier: Apache-2.0
"""Scheduling of passes: the objects to reconcile after a change of another one.

The cost is proportional to their number.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import OWNER_KIND, OWNER_NAME
from finetune_operator.engine.resources import JOB, POD, controller
from finetune_operator.observe.device_usage import job_devices, read_profile, read_use
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.indexes import BY_LINE, address, key_of
from finetune_operator.reconcile.kind_table import (
    Change,
    IndexedObjects,
    first_in_line,
    indexed_keys,
    record_key,
)
from finetune_operator.reconcile.registry import KIND_ROWS


def related(kind: str, old: Manifest | None, new: Manifest | None, objects: IndexedObjects) -> frozenset[Key]:
    """Keys of the objects whose state may depend on this one, without its own key.

    `kind` is one of our kinds or that of a child (`inputs.related_types.RELATED_TYPES`).

    Raises:
        ValueError: there is neither an old nor a new state.
    """
    change = Change(old, new)
    row = KIND_ROWS.get(kind)
    found = {*_owner(change, objects)}
    if row is None:
        found.update(CHILD_RELATIONS[kind](change, objects) if kind in CHILD_RELATIONS else ())
    else:
        found.update(row.relations(change, objects))
        found.update(row.released(change, objects))
        found.update(row.next_in_line(change, objects))
    return frozenset(found)


def affected_by_champion(namespace: str, model_line: str, objects: IndexedObjects) -> frozenset[Key]:
    """Keys of the objects that may react to a new champion of a model line.

    They are its followers, its unfinished runs with their Checkpoints that are not promoted, and the
    Checkpoints that a person has approved.
    """
    line, index = address(namespace, model_line), objects.checkpoints(namespace)
    keys = set(indexed_keys(objects, BY_LINE, line, InferenceDeployment))
    for job in objects.indexed(BY_LINE, line, FineTuneJob):
        keys.add(key_of(job))
        checkpoints = index.of_run(job["metadata"]["uid"])
        keys |= {record_key(each) for each in checkpoints if each.status.promoted_at is None}
    approved = index.approved(model_line)
    return frozenset(keys | {Key(Checkpoint.__name__, namespace, name) for name in approved})


def _owner(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """The owner of an object, or else the owner of the child that controls it.

    It is the controller, or else the object in the labels, which hold at most 63 characters of a name.
    """
    reference = controller(change.known)
    parent = objects.child(reference["kind"], change.namespace, reference["name"]) if reference else None
    for obj in (change.known, *([parent] if parent is not None else ())):
        labels, by = obj["metadata"].get("labels", {}), controller(obj)
        kind, name = labels.get(OWNER_KIND), labels.get(OWNER_NAME)
        if by.get("kind") in KIND_ROWS:
            kind, name = by["kind"], by["name"]
        if kind in KIND_ROWS and name:
            yield Key(kind, change.namespace, name)
            return


def _of_job(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """The first object that waits for its budget when it needs fewer devices than before."""
    before, after = (0 if job is None else job_devices(job) for job in (change.old, change.new))
    if after < before:
        yield from first_in_line(change.namespace, read_profile(change.known), objects)


def _of_pod(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """A ComputeProfile with a budget when the pod begins or ends to use devices."""
    before, after = (read_use(pod) if pod is not None else None for pod in (change.old, change.new))
    had_ended = before is not None and before.ended_at is not None
    if before == after or (after is None and had_ended):
        return
    for name in {use.profile for use in (before, after) if use is not None}:
        profile = objects.child(ComputeProfile.__name__, "", name)
        if profile is not None and profile.get("spec", {}).get("cost", {}).get("budget"):
            yield Key(ComputeProfile.__name__, "", name)


CHILD_RELATIONS: Final[Mapping[str, Callable[[Change, IndexedObjects], Iterator[Key]]]] = {
    JOB.kind: _of_job,
    POD.kind: _of_pod,
}
"""Objects that depend on a child, in addition to its owner."""
