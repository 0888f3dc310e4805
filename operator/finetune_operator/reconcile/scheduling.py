# SPDX-License-Identifier: Apache-2.0
"""Scheduling of passes: the objects that a change concerns, and locks for passes that must not overlap.

Locks for passes that must not overlap, because each one depends on what the other ones write.

The objects to reconcile after a change of another one. The cost is proportional to their number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile, is_marked_default
from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.engine.resources import controller
from finetune_operator.manifests.labels import OWNER_KIND, OWNER_NAME
from finetune_operator.observe.device_usage import job_devices, read_profile, read_use
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.indexes import (
    BY_CHECKPOINT,
    BY_CONTENT,
    BY_DATASET,
    BY_LINE,
    BY_PARENT,
    BY_PROFILE,
    BY_STATE,
    DEFAULT_PROFILE,
    OVER_BUDGET,
    QUEUED,
    UNSETTLED,
    address,
    contents,
    has_ended,
    is_rolling,
    namespace_of,
    waits_for_budget_of,
)
from finetune_operator.reconcile.model_lines import CheckpointIndex
from finetune_operator.reconcile.platform.budgets import find_exhausted, is_counted
from finetune_operator.reconcile.records.retention import waits_for_users

LockName = tuple[str, ...]
"""Key of a lock that a pass holds."""


def line_lock(namespace: str, model_line: str) -> LockName:
    """The lock of a Checkpoint's pass: a line promotes its Checkpoints one by one.

    Two promotions at the same time would both compare with the champion that the first of them replaces.
    """
    return ("model line", namespace, model_line)


def budget_lock(namespace: str) -> LockName:
    """The lock of the pass of a run or an Evaluation that waits for a budget of its namespace.

    Each of them counts the devices of the Jobs that those before it have created.
    """
    return ("budget", namespace)


def rollout_lock(endpoint: InferenceDeployment, profiles: Mapping[str, ComputeProfile]) -> LockName | None:
    """The lock of an endpoint's pass: rollouts of a profile are counted one by one.

    Without a limit of the profile they are counted per namespace.
    """
    named = endpoint.spec.compute.profile
    if named is None:
        own = [profile for profile in profiles.values() if profile.is_default]
    else:
        own = [profiles[named]] if named in profiles else []
    if not own:
        return None
    limiting = next((profile for profile in own if profile.spec.limits.concurrent_rollouts is not None), None)
    if limiting is None:
        return ("rollouts", own[0].name, endpoint.namespace)
    return ("rollouts", limiting.name)


class IndexedObjects(Protocol):
    """The caches, read by the indexes of `reconcile.inputs.indexes`."""

    def child(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """An object of a watched type."""

    def indexed(self, kind: str, index: str, value: str) -> Iterable[Manifest]: ...

    def checkpoints(self, namespace: str) -> CheckpointIndex: ...

    def first_in_line(self, namespace: str, profile: str) -> Key | None:
        """The oldest object of the namespace that waits for the budget of this profile or DEFAULT_PROFILE."""

    def computeprofiles(self) -> Iterable[ComputeProfile]: ...

    def records_of(self, content: str) -> Iterable[Checkpoint | DatasetVersion]:
        """Records of all namespaces by digest, or the one by `address`."""


class Change:
    """Two states of an object; `old` is None after a creation, `new` after a deletion."""

    def __init__(self, old: Manifest | None, new: Manifest | None) -> None:
        known = new or old
        if known is None:
            raise ValueError("a change needs at least one state of the object")
        self.old = old
        self.new = new
        self.known: Manifest = known
        """The newest state, which is the last one of a deleted object."""
        self.namespace = namespace_of(known)
        self.name: str = known["metadata"]["name"]
        self.states = tuple(state for state in (old, new) if state is not None)


def related(kind: str, old: Manifest | None, new: Manifest | None, objects: IndexedObjects) -> frozenset[Key]:
    """Keys of the objects whose state may depend on this one, without its own key.

    `kind` is one of our kinds or that of a child (`inputs.related_types.RELATED_TYPES`).

    Raises:
        ValueError: there is neither an old nor a new state.
    """
    change = Change(old, new)
    return frozenset(RELATIONS.get(kind, _owner)(change, objects))


def affected_by_champion(namespace: str, model_line: str, objects: IndexedObjects) -> frozenset[Key]:
    """Keys of the objects that may react to a new champion of a model line.

    They are its followers, its unfinished runs with their Checkpoints that are not promoted, and the
    Checkpoints that a person has approved.
    """
    line, index = address(namespace, model_line), objects.checkpoints(namespace)
    keys = {_key(endpoint) for endpoint in objects.indexed("InferenceDeployment", BY_LINE, line)}
    for job in objects.indexed("FineTuneJob", BY_LINE, line):
        keys.add(_key(job))
        checkpoints = index.of_run(job["metadata"]["uid"])
        keys |= {_record_key(each) for each in checkpoints if each.status.promoted_at is None}
    return frozenset(keys | {Key("Checkpoint", namespace, name) for name in index.approved(model_line)})


def _key(manifest: Manifest) -> Key:
    return Key(manifest["kind"], namespace_of(manifest), manifest["metadata"]["name"])


def _record_key(record: Checkpoint | DatasetVersion) -> Key:
    return Key(record.kind, record.namespace, record.name)


def _owner(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """The owner of a child, or else the owner of the child that controls it.

    It is the controller, or else the object in the labels, which hold at most 63 characters of a name.
    """
    reference = controller(change.known)
    parent = objects.child(reference["kind"], change.namespace, reference["name"]) if reference else None
    for obj in (change.known, *([parent] if parent is not None else ())):
        labels, by = obj["metadata"].get("labels", {}), controller(obj)
        kind, name = labels.get(OWNER_KIND), labels.get(OWNER_NAME)
        if by.get("kind") in KINDS_BY_NAME:
            kind, name = by["kind"], by["name"]
        if kind in KINDS_BY_NAME and name:
            yield Key(kind, change.namespace, name)
            return


def _released(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """Terminating records that may have waited until this object no longer needs them."""
    before = contents(change.old) if change.old is not None else frozenset()
    after = contents(change.new) if change.new is not None else frozenset()
    for content in before - after:
        yield from (_record_key(each) for each in objects.records_of(content) if waits_for_users(each))


def _of_finetunejob(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    for checkpoint in objects.checkpoints(change.namespace).of_run(change.known["metadata"]["uid"]):
        yield _record_key(checkpoint)
    yield from _released(change, objects)
    yield from _left_line(change, objects)


def _waiting_for_dataset(namespace: str, dataset: str, objects: IndexedObjects) -> Iterator[Key]:
    for kind in ("FineTuneJob", "Evaluation"):
        yield from map(_key, objects.indexed(kind, BY_DATASET, address(namespace, dataset)))


def _of_dataset(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    yield from _waiting_for_dataset(change.namespace, change.name, objects)
    latest = (change.known.get("status") or {}).get("latestVersion")
    if latest:
        yield Key("DatasetVersion", change.namespace, latest)


def _of_datasetversion(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    yield from _waiting_for_dataset(change.namespace, change.known["spec"]["dataset"], objects)
    yield from _owner(change, objects)


def _of_checkpoint(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """Objects that depend on this Checkpoint itself; `affected_by_champion` has those of a new champion."""
    spec, here = change.known["spec"], address(change.namespace, change.name)
    yield Key("FineTuneJob", change.namespace, spec["lineage"]["job"]["name"])
    yield from map(_key, objects.indexed("FineTuneJob", BY_PARENT, here))
    yield from map(_key, objects.indexed("InferenceDeployment", BY_CONTENT, here))
    waiting = objects.indexed("Evaluation", BY_CHECKPOINT, here)
    yield from (_key(evaluation) for evaluation in waiting if not has_ended(evaluation))
    if objects.checkpoints(change.namespace).champion_name(spec["modelLine"]) == change.name:
        # Followers serve it only if its scores and its approval allow it.
        line = address(change.namespace, spec["modelLine"])
        yield from map(_key, objects.indexed("InferenceDeployment", BY_LINE, line))


def _of_evaluation(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """The Checkpoints that take its scores, and what may have waited for its end or its start."""
    before, after = _scores(change.old), _scores(change.new)
    yield from (
        Key("Checkpoint", change.namespace, each["checkpoint"]) for each in after if each not in before
    )
    yield from _released(change, objects)
    yield from _left_line(change, objects)


def _scores(evaluation: Manifest | None) -> list[dict[str, str]]:
    scores: list[dict[str, str]] = ((evaluation or {}).get("status") or {}).get("evaluations", [])
    return scores


def _of_inferencedeployment(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    index = objects.checkpoints(change.namespace)
    for state in change.states:
        for model in (state.get("status") or {}).get("models", ()):
            checkpoint = index.get(model.get("checkpoint") or "")
            if checkpoint is not None:
                yield _record_key(checkpoint)
    # What it no longer serves or pins may now be removed, in whichever namespace the record is.
    yield from _released(change, objects)
    # The end of a rollout frees a slot for queued endpoints of all namespaces.
    was_rolling = change.old is not None and is_rolling(change.old)
    if was_rolling and not (change.new is not None and is_rolling(change.new)):
        waiting = map(_key, objects.indexed("InferenceDeployment", BY_STATE, QUEUED))
        yield from (key for key in waiting if key != _key(change.known))


def _of_computeprofile(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    old, new = change.old, change.new
    if old is not None and new is not None and _profile_text(old) == _profile_text(new):
        # Of its status, other objects read only whether their namespace may use more.
        for namespace in find_exhausted(old) - find_exhausted(new):
            yield from _first_in_line(namespace, change.name, objects)
        if not is_counted(old) and is_counted(new):
            for kind in ("FineTuneJob", "Evaluation"):
                yield from map(_key, objects.indexed(kind, BY_STATE, OVER_BUDGET))
        return
    names = [change.name]
    if any(map(_is_default, change.states)):
        # Two defaults are a conflict of both, and objects without a profile depend on the default.
        names.append(DEFAULT_PROFILE)
        for profile in objects.computeprofiles():
            if profile.is_default and profile.name != change.name:
                yield Key("ComputeProfile", "", profile.name)
    for kind in ("FineTuneJob", "Evaluation", "InferenceDeployment"):
        for name in names:
            yield from map(_key, objects.indexed(kind, BY_PROFILE, name))
    yield from map(_key, objects.indexed("Dataset", BY_STATE, UNSETTLED))


def _first_in_line(namespace: str, profile: str, objects: IndexedObjects) -> Iterator[Key]:
    """The first object that waits for a budget. The next one follows when this one no longer waits."""
    first = objects.first_in_line(namespace, profile)
    if first is not None:
        yield first


def _left_line(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """The next object that waits for a budget which this one has waited for."""
    old, new = change.old, change.new
    before, after = (None if state is None else waits_for_budget_of(state) for state in (old, new))
    if before is not None and before != after:
        yield from _first_in_line(change.namespace, before, objects)


def _of_job(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """Its owner, and the first object that waits for its budget when it needs fewer devices than before."""
    yield from _owner(change, objects)
    before, after = (0 if job is None else job_devices(job) for job in (change.old, change.new))
    if after < before:
        yield from _first_in_line(change.namespace, read_profile(change.known), objects)


def _of_pod(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    """Its owner, and a ComputeProfile with a budget when the pod begins or ends to use devices."""
    yield from _owner(change, objects)
    before, after = (read_use(pod) if pod is not None else None for pod in (change.old, change.new))
    had_ended = before is not None and before.ended_at is not None
    if before == after or (after is None and had_ended):
        return
    for name in {use.profile for use in (before, after) if use is not None}:
        profile = objects.child("ComputeProfile", "", name)
        if profile is not None and profile.get("spec", {}).get("cost", {}).get("budget"):
            yield Key("ComputeProfile", "", name)


def _profile_text(profile: Manifest) -> tuple[object, ...]:
    metadata = profile["metadata"]
    return profile.get("spec"), metadata.get("annotations"), metadata.get("labels")


def _is_default(profile: Manifest) -> bool:
    metadata = profile["metadata"]
    return is_marked_default(metadata.get("annotations") or {}, metadata.get("labels") or {})


RELATIONS: Final[Mapping[str, Callable[[Change, IndexedObjects], Iterator[Key]]]] = {
    "FineTuneJob": _of_finetunejob,
    "Dataset": _of_dataset,
    "DatasetVersion": _of_datasetversion,
    "Checkpoint": _of_checkpoint,
    "Evaluation": _of_evaluation,
    "InferenceDeployment": _of_inferencedeployment,
    "ComputeProfile": _of_computeprofile,
    "Job": _of_job,
    "Pod": _of_pod,
}
