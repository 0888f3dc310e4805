# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the caches for passes, and lookups in the caches, with typed views of the stores.

A snapshot costs as much as reading the children of one object. Each state of an object is parsed once, when
it is first read.
"""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Generic, TypeGuard, TypeVar, cast

from pydantic import ValidationError

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import Resource
from finetune_operator.engine.resources import JOB, POD, ResourceType, controller, version
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.device_use import Calibration, DeviceUse, JobDevices
from finetune_operator.reconcile.inputs.indexes import (
    BY_CHECKPOINT,
    BY_CONTENT,
    BY_DATASET_OF,
    BY_DIGEST,
    BY_LINE,
    BY_STATE,
    DEFAULT_PROFILE,
    PARTLY_SCHEDULED,
    QUEUED,
    ROLLING,
    Line,
    PlaceInLine,
    SortedGroups,
    address,
    age_of,
    namespace_of,
    place_in_history,
)
from finetune_operator.reconcile.inputs.related_types import Children
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, RunProgress, Snapshot
from finetune_operator.reconcile.model_lines import CheckpointIndex
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.runtime.caches import Caches
from finetune_trainer.contract.base import lenient_validator

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)

MAX_SETTLED_MODELS: Final = 200
"""Number of models of settled objects to keep."""


class Models(Generic[R]):
    """The objects of one kind as models.

    Settled objects are many and seldom read, so only the most recently read of their models are kept.

    An object with values that only a newer release knows is still parsed, and `unknown` returns their paths.
    An object that cannot be parsed, which the CRDs of this release would have refused, is logged and left
    out.
    """

    def __init__(self, store: ObjectStore, model: type[R]) -> None:
        self._store = store
        self._model = model
        self._unknown: dict[tuple[str, str], tuple[str, ...]] = {}
        self._parsed: dict[tuple[str, str], tuple[int, R | None]] = {}
        self._settled: OrderedDict[tuple[str, str], tuple[int, R | None]] = OrderedDict()
        store.subscribe(self._forget)

    def get(self, namespace: str, name: str) -> R | None:
        known = self._settled.get((namespace, name))
        if known is not None and known[0] == self._store.version_of(namespace, name):
            # This avoids unpacking the object.
            return known[1]
        obj = self._store.get(namespace, name)
        return None if obj is None else self.parse(obj)

    def parse(self, obj: Manifest) -> R | None:
        """The model of this state of an object, or None if it cannot be parsed."""
        metadata = obj["metadata"]
        address = (metadata.get("namespace", ""), metadata["name"])
        state = version(obj)
        is_settled = self._store.is_settled(*address)
        parsed = self._settled if is_settled else self._parsed
        known = parsed.get(address)
        if known is not None and known[0] == state:
            return known[1]
        model = self._validated(obj, address)
        parsed[address] = (state, model)
        if is_settled:
            self._parsed.pop(address, None)
            self._settled.move_to_end(address)
            while len(self._settled) > MAX_SETTLED_MODELS:
                self._settled.popitem(last=False)
        return model

    def unknown(self, obj: Manifest) -> tuple[str, ...]:
        """Paths of the values in this state of an object that only a newer release knows."""
        self.parse(obj)
        metadata = obj["metadata"]
        return self._unknown.get((metadata.get("namespace", ""), metadata["name"]), ())

    def _validated(self, obj: Manifest, address: tuple[str, str]) -> R | None:
        self._unknown.pop(address, None)
        try:
            return self._model.model_validate(obj)
        except ValidationError as error:
            self._unknown[address] = tuple(".".join(map(str, each["loc"])) for each in error.errors())
            return self._leniently(obj, address)

    def _leniently(self, obj: Manifest, address: tuple[str, str]) -> R | None:
        try:
            return cast("R", lenient_validator(self._model).validate_python(obj))
        except ValidationError as error:
            logger.error(  # noqa: TRY400 - the traceback adds nothing to the message
                "cannot read %s %s/%s and ignores it; apply the CRDs of this release: %s",
                self._model.__name__,
                *address,
                error,
            )
            return None

    def indexed(self, index: str, value: str) -> Iterable[R]:
        """Objects by an index of the store. Evaluated lazily, and can be iterated repeatedly."""
        return _Indexed(self, self._store, index, value)

    def named(self, namespace: str) -> Mapping[str, R]:
        """Objects of a namespace, by name. Evaluated lazily."""
        return _Named(self, namespace)

    def names(self, namespace: str) -> list[str]:
        """Names of the objects of a namespace, including those that cannot be parsed."""
        return list(self._store.names(namespace))

    def _forget(self, old: Manifest | None, new: Manifest | None) -> None:
        if old is not None and new is None:
            address = (old["metadata"].get("namespace", ""), old["metadata"]["name"])
            self._parsed.pop(address, None)
            self._settled.pop(address, None)
            self._unknown.pop(address, None)


class _Indexed(Iterable[R]):
    def __init__(self, models: Models[R], store: ObjectStore, index: str, value: str) -> None:
        self._models = models
        self._store = store
        self._index = index
        self._value = value

    def __iter__(self) -> Iterator[R]:
        for obj in tuple(self._store.indexed(self._index, self._value).values()):
            model = self._models.parse(obj)
            if model is not None:
                yield model


class _Named(Mapping[str, R]):
    def __init__(self, models: Models[R], namespace: str) -> None:
        self._models = models
        self._namespace = namespace

    def __getitem__(self, name: str) -> R:
        model = self._models.get(self._namespace, name)
        if model is None:
            raise KeyError(name)
        return model

    def __iter__(self) -> Iterator[str]:
        names = self._models.names(self._namespace)
        return (name for name in names if self._models.get(self._namespace, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class SnapshotReader:
    """Reads the caches for passes and for `scheduling.related`.

    Args:
        caches: the caches.
        pods_age: returns the seconds since the watch of the pods of a namespace was last alive.
    """

    def __init__(self, caches: Caches, pods_age: Callable[[str], float] = lambda _: 0.0) -> None:
        self._caches = caches
        self._models = {kind: Models(caches.kinds[kind], row.model) for kind, row in KIND_ROWS.items()}
        self._stores_by_index: defaultdict[str, list[ObjectStore]] = defaultdict(list)
        for kind, row in KIND_ROWS.items():
            for index in row.indexers:
                self._stores_by_index[index].append(caches.kinds[kind])
        self._lines: dict[str, CheckpointIndex] = {}
        self._champion_listeners: list[Callable[[str, str], None]] = []
        self._calibration = Calibration()
        self._device_use = DeviceUse(partial(datetime.now, UTC), pods_age)
        self._job_devices = JobDevices()
        self._budget_lines = SortedGroups(_place_in_line)
        self._histories = SortedGroups(place_in_history)
        caches.of(Checkpoint).subscribe(self._index)
        caches.of(FineTuneJob).subscribe(self._calibrate)
        caches.of(DatasetVersion).subscribe(self._histories.note)
        for store in caches.kinds.values():
            store.subscribe(self._budget_lines.note)
        caches.children[POD].subscribe(self._device_use.note)
        caches.children[JOB].subscribe(self._job_devices.note)

    @property
    def calibration(self) -> Calibration:
        return self._calibration

    def subscribe_champions(self, listener: Callable[[str, str], None]) -> None:
        """Call the listener with namespace and name of each model line whose champion changed."""
        self._champion_listeners.append(listener)

    def resource(self, key: Key) -> Resource | None:
        """The object as a model; None if it does not exist or cannot be parsed."""
        return self._models[key.kind].get(key.namespace, key.name)

    def unknown(self, key: Key) -> tuple[str, ...]:
        """Paths of the object's values that only a newer release knows."""
        obj = self._caches.kinds[key.kind].get(key.namespace, key.name)
        return () if obj is None else self._models[key.kind].unknown(obj)

    def lock(self, key: Key) -> tuple[str, ...] | None:
        """Lock of the pass for this object: passes with the same lock must not overlap."""
        return KIND_ROWS[key.kind].lock(key, self)

    def snapshot(
        self,
        resource: Resource,
        *,
        now: datetime,
        facts: OperatorFacts,
        entropy: bytes,
        service_accounts: frozenset[str],
        progress: RunProgress | None,
    ) -> Snapshot:
        """The snapshot of a pass from the caches. The caller adds looked-up objects.

        Args:
            resource: the reconciled object.
            now: time of the pass, in UTC.
            facts: facts about this process.
            entropy: KEY_BYTES random bytes for this pass only.
            service_accounts: names of service accounts that exist in the object's namespace.
            progress: newest report of the run, if the object is one.
        """
        namespace = resource.namespace
        children, orphans = self._children(namespace, resource.uid)
        return Snapshot(
            now=now,
            facts=facts,
            entropy=entropy,
            children=children,
            orphans=orphans,
            service_accounts=service_accounts,
            finetunejobs=self._of(FineTuneJob).named(namespace),
            datasets=self._of(Dataset).named(namespace),
            datasetversions=self._of(DatasetVersion).named(namespace),
            checkpoints=self.checkpoints(namespace),
            versions_made_by=partial(self._of(DatasetVersion).indexed, BY_DATASET_OF),
            runs_with=partial(self._with_content, self._of(FineTuneJob)),
            evaluations_with=partial(self._with_content, self._of(Evaluation)),
            evaluations=self._of(Evaluation).named(namespace),
            measurements_of=self._measurements,
            followers_of=partial(self._of(InferenceDeployment).indexed, BY_LINE),
            endpoints_with=partial(self._with_content, self._of(InferenceDeployment)),
            rolling_everywhere=self._of(InferenceDeployment).indexed(BY_STATE, ROLLING),
            queued_everywhere=partial(self._of(InferenceDeployment).indexed, BY_STATE, QUEUED),
            partly_scheduled_everywhere=self._of(FineTuneJob).indexed(BY_STATE, PARTLY_SCHEDULED),
            profiles=self.computeprofiles(),
            calibrated_mfu=self._calibration.mfu_of,
            peak_bytes=self._calibration.peak_bytes,
            device_use=self._device_use.of,
            jobs_of_others=partial(self._job_devices.of_others, namespace, resource.uid),
            is_first_in_line=partial(self._is_first_in_line, resource),
            progress=progress,
            same_content=self._same_content(resource),
            newer=partial(self._newer, resource),
        )

    def indexed(self, index: str, value: str, model: type[Resource] | None = None) -> Iterable[Manifest]:
        """Objects by an index of `reconcile.inputs.indexes`, of all kinds that have it or of one."""
        stores = self._stores_by_index[index] if model is None else [self._caches.of(model)]
        return tuple(obj for store in stores for obj in store.indexed(index, value).values())

    def is_indexed(self, index: str, value: str, key: Key) -> bool:
        """Whether an object has this value of an index of its kind. It is not unpacked."""
        return address(key.namespace, key.name) in self._caches.kinds[key.kind].indexed(index, value)

    def computeprofiles(self) -> Mapping[str, ComputeProfile]:
        """The ComputeProfiles by name. Evaluated lazily."""
        return self._of(ComputeProfile).named("")

    def first_in_line(self, namespace: str, profile: str) -> Key | None:
        """The oldest object of the namespace that waits for the budget of this profile."""
        place = self._first_place(namespace, profile)
        return None if place is None else place[1]

    def checkpoints(self, namespace: str) -> CheckpointIndex:
        return self._lines.get(namespace, CheckpointIndex())

    def records_of(self, content: str) -> Iterable[Checkpoint | DatasetVersion]:
        """Records of all namespaces with a digest, or the record at an `indexes.address`."""
        namespace, _, name = content.partition("/")
        for records in (self._of(Checkpoint), self._of(DatasetVersion)):
            named: Any = records.get(namespace, name)
            if named is not None:
                yield named
            yield from records.indexed(BY_DIGEST, content)

    def child(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object of a watched type, or None."""
        store = self._caches.by_kind.get(kind)
        return None if store is None else store.get(namespace, name)

    def _of(self, model: type[R]) -> Models[R]:
        return cast("Models[R]", self._models[model.__name__])

    def _index(self, old: Manifest | None, new: Manifest | None) -> None:
        metadata = (new or old or {})["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        index = self._lines.get(namespace)
        if index is None:
            load = partial(self._of(Checkpoint).get, namespace)
            index = self._lines[namespace] = CheckpointIndex(load=load)
        after = self._of(Checkpoint).parse(new) if new is not None else None
        lines = {index.line_of(name), None if after is None else after.spec.model_line}
        champions = {line: index.champion_identity(line) for line in lines if line is not None}
        if after is None:
            index.remove(name)
        else:
            index.put(after)
        if index.is_empty:
            del self._lines[namespace]
        for line, champion in champions.items():
            if index.champion_identity(line) != champion:
                for listener in self._champion_listeners:
                    listener(namespace, line)

    def _is_first_in_line(self, resource: Resource, profile: str) -> bool:
        first = self._first_place(resource.namespace, profile)
        own = self._caches.kinds[resource.kind].get(resource.namespace, resource.name)
        return first is None or own is None or age_of(own) <= first

    def _first_place(self, namespace: str, profile: str) -> PlaceInLine | None:
        places = (self._budget_lines.first((namespace, name)) for name in self._names_of(profile))
        return min((place for place in places if place is not None), default=None)

    def _names_of(self, profile: str) -> set[str]:
        """The names under which objects wait for the budget of a profile: also as the default."""
        defaults = {each.name for each in self.computeprofiles().values() if each.is_default}
        return {profile, DEFAULT_PROFILE, *defaults} if profile in {DEFAULT_PROFILE, *defaults} else {profile}

    def _calibrate(self, _: Manifest | None, job: Manifest | None) -> None:
        if job is not None:
            self._calibration.note(job)

    def _with_content(self, models: Models[R], content: str) -> Iterable[R]:
        return models.indexed(BY_CONTENT, content)

    def _measurements(self, checkpoint: str) -> Iterator[tuple[str, datetime]]:
        for key, measured_at in self._caches.of(Evaluation).noted(BY_CHECKPOINT, checkpoint):
            if measured_at:
                yield key.partition("/")[2], datetime.fromisoformat(measured_at)

    def _newer(self, resource: Resource) -> int:
        """Number of records newer than this one, of its model line or of its Dataset or run."""
        if isinstance(resource, Checkpoint):
            return self.checkpoints(resource.namespace).newer(resource.name)
        version = self._caches.of(DatasetVersion).get(resource.namespace, resource.name)
        place = None if version is None else place_in_history(version)
        return 0 if place is None else self._histories.number_after(*place)

    def _same_content(self, resource: Resource) -> tuple[Checkpoint | DatasetVersion, ...]:
        if not _is_terminating_record(resource):
            return ()
        records: Models[Any] = self._models[resource.kind]
        same = records.indexed(BY_DIGEST, resource.spec.digest)
        return tuple(record for record in same if record.uid != resource.uid)

    def _children(self, namespace: str, uid: str) -> tuple[Children, dict[str, tuple[Manifest, ...]]]:
        """The children of the object, and, by the Job's name, pods that only claim to belong to its Jobs."""
        children: dict[ResourceType, dict[str, Manifest]] = {}
        orphans: dict[str, tuple[Manifest, ...]] = {}
        owners = [uid]
        for entry in self._caches.child_types:
            own = children.setdefault(entry.type, {})
            for obj in [obj for owner in owners for obj in self._caches.owned(entry.type, namespace, owner)]:
                if entry.belongs(obj, children):
                    own[obj["metadata"]["name"]] = obj
                elif (reference := controller(obj)).get("kind") == JOB.kind:
                    orphans[reference["name"]] = (*orphans.get(reference["name"], ()), obj)
            owners += [obj["metadata"]["uid"] for obj in own.values()]
        return children, orphans


def _place_in_line(obj: Manifest) -> tuple[Line, PlaceInLine] | None:
    """Where an object waits for a budget; None if it does not."""
    profile = KIND_ROWS[obj["kind"]].awaited_budget(obj)
    return None if profile is None else ((namespace_of(obj), profile), age_of(obj))


def _is_terminating_record(resource: Resource) -> TypeGuard[Checkpoint | DatasetVersion]:
    is_record = isinstance(resource, Checkpoint | DatasetVersion)
    return is_record and resource.metadata.deletion_timestamp is not None
