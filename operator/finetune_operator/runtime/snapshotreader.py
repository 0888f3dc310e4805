"""Reads the caches: the snapshot of a pass, at the cost of the children of its object, and lookups."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from secrets import token_bytes
from typing import Any, TypeGuard, TypeVar

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Resource
from finetune_operator.engine.metadata import controller, controller_uid
from finetune_operator.engine.store import ObjectStore
from finetune_operator.manifests.labels import OWNER_KIND
from finetune_operator.manifests.peers import KEY_BYTES
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.indexes import (
    BY_CONTENT,
    BY_DATASET_OF,
    BY_DIGEST,
    BY_STATE,
    ROLLING,
    address,
    version_owner,
)
from finetune_operator.reconcile.lines import CheckpointIndex
from finetune_operator.reconcile.snapshot import OperatorFacts, RunProgress, Snapshot
from finetune_operator.reconcile.turns import line_turn, rollout_turn
from finetune_operator.runtime.caches import BY_CONTROLLER, BY_RUN, Caches
from finetune_operator.runtime.models import Models

R = TypeVar("R", bound=Resource)


class SnapshotReader:
    """Reads the caches for passes; also what `relations.related` looks things up in."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches
        kinds = caches.kinds
        self._finetunejobs = Models(kinds["FineTuneJob"], FineTuneJob)
        self._datasets = Models(kinds["Dataset"], Dataset)
        self._datasetversions = Models(kinds["DatasetVersion"], DatasetVersion)
        self._checkpoints = Models(kinds["Checkpoint"], Checkpoint)
        self._inferencedeployments = Models(kinds["InferenceDeployment"], InferenceDeployment)
        self._profiles = Models(kinds["ComputeProfile"], ComputeProfile)
        self._models: dict[str, Models[Any]] = {
            "FineTuneJob": self._finetunejobs,
            "Dataset": self._datasets,
            "DatasetVersion": self._datasetversions,
            "Checkpoint": self._checkpoints,
            "InferenceDeployment": self._inferencedeployments,
            "ComputeProfile": self._profiles,
        }
        self._lines: dict[str, CheckpointIndex] = {}
        self._champion_listeners: list[Callable[[str, str], None]] = []
        kinds["Checkpoint"].subscribe(self._index)

    def subscribe_champions(self, listener: Callable[[str, str], None]) -> None:
        """Have the listener called with the namespace and name of each model line whose champion changed."""
        self._champion_listeners.append(listener)

    def resource(self, key: Key) -> Resource | None:
        """The object as a model; None where it does not exist or cannot be read."""
        return self._models[key.kind].get(key.namespace, key.name)

    def unknown(self, key: Key) -> tuple[str, ...]:
        """Paths of the object's values that only a newer release knows."""
        obj = self._caches.kinds[key.kind].get(key.namespace, key.name)
        return () if obj is None else self._models[key.kind].unknown(obj)

    def turn(self, key: Key) -> tuple[str, ...] | None:
        """What a pass over this object decides about together with others, which it must not overlap."""
        if key.kind == "Checkpoint":
            # Without reading it: a line may have thousands, of which all but one wait.
            index = self._lines.get(key.namespace)
            model = None if index is None else index.model_of(key.name)
            return None if model is None else line_turn(key.namespace, model)
        if key.kind != "InferenceDeployment":
            return None
        endpoint = self._inferencedeployments.get(key.namespace, key.name)
        return None if endpoint is None else rollout_turn(endpoint, self._profiles.named(""))

    def snapshot(
        self,
        resource: Resource,
        *,
        now: datetime,
        facts: OperatorFacts,
        service_accounts: frozenset[str],
        progress: RunProgress | None,
    ) -> Snapshot:
        """Everything but the claims, which need requests."""
        namespace = resource.namespace
        jobs = _children(self._caches.jobs, resource.uid)
        deployments = _children(self._caches.deployments, resource.uid)
        pods, orphans = self._pods(resource.uid, jobs, deployments)
        return Snapshot(
            now=now,
            facts=facts,
            entropy=token_bytes(KEY_BYTES),
            jobs=jobs,
            pods=pods,
            orphans=orphans,
            deployments=deployments,
            services=_children(self._caches.services, resource.uid),
            network_policies=_children(self._caches.network_policies, resource.uid),
            disruption_budgets=_children(self._caches.disruption_budgets, resource.uid),
            service_accounts=service_accounts,
            finetunejobs=self._finetunejobs.named(namespace),
            datasets=self._datasets.named(namespace),
            datasetversions=self._datasetversions.named(namespace),
            checkpoints=self.checkpoints(namespace),
            versions_made_by=partial(self._datasetversions.indexed, BY_DATASET_OF),
            runs_with=partial(self._with_content, self._finetunejobs),
            endpoints_with=partial(self._with_content, self._inferencedeployments),
            rolling_everywhere=self._inferencedeployments.indexed(BY_STATE, ROLLING),
            profiles=self._profiles.named(""),
            progress=progress,
            same_content=self._same_content(resource),
            newer=self._newer(resource),
        )

    def indexed(self, kind: str, index: str, value: str) -> Iterable[Manifest]:
        """Objects of a kind by an index of `reconcile.indexes`."""
        return tuple(self._caches.kinds[kind].indexed(index, value).values())

    def computeprofiles(self) -> Iterable[ComputeProfile]:
        return self._profiles.all()

    def checkpoints(self, namespace: str) -> CheckpointIndex:
        return self._lines.get(namespace, CheckpointIndex())

    def records_of(self, content: str) -> Iterable[Checkpoint | DatasetVersion]:
        """Records of all namespaces by digest, or the one by `indexes.address`."""
        namespace, _, name = content.partition("/")
        for records in (self._checkpoints, self._datasetversions):
            named: Any = records.get(namespace, name)
            if named is not None:
                yield named
            yield from records.indexed(BY_DIGEST, content)

    def _index(self, old: Manifest | None, new: Manifest | None) -> None:
        metadata = (new or old or {})["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        index = self._lines.get(namespace)
        if index is None:
            load = partial(self._checkpoints.get, namespace)
            index = self._lines[namespace] = CheckpointIndex(load=load)
        after = self._checkpoints.parse(new) if new is not None else None
        models = {index.model_of(name), None if after is None else after.spec.model}
        champions = {model: index.champion_identity(model) for model in models if model is not None}
        if after is None:
            index.remove(name)
        else:
            index.put(after)
        if index.is_empty:
            del self._lines[namespace]
        for model, champion in champions.items():
            if index.champion_identity(model) != champion:
                for listener in self._champion_listeners:
                    listener(namespace, model)

    def _with_content(self, models: Models[R], content: str) -> Iterable[R]:
        return models.indexed(BY_CONTENT, content)

    def _newer(self, resource: Resource) -> int:
        """Of a record: how many newer ones there are of its line, or of what made it."""
        if isinstance(resource, Checkpoint):
            return self.checkpoints(resource.namespace).newer(resource.name)
        if not isinstance(resource, DatasetVersion):
            return 0
        kind = resource.metadata.labels.get(OWNER_KIND, "")
        owner = version_owner(kind, resource.namespace, resource.spec.dataset)
        siblings = dict(self._caches.kinds[resource.kind].noted(BY_DATASET_OF, owner))
        own = address(resource.namespace, resource.name)
        return sum((note, key) > (siblings.get(own, ""), own) for key, note in siblings.items())

    def _same_content(self, resource: Resource) -> tuple[Checkpoint | DatasetVersion, ...]:
        if not _is_going_record(resource):
            return ()
        records: Models[Any] = self._models[resource.kind]
        same = records.indexed(BY_DIGEST, resource.spec.digest)
        return tuple(record for record in same if record.uid != resource.uid)

    def _pods(
        self, uid: str, jobs: Mapping[str, Manifest], deployments: Mapping[str, Manifest]
    ) -> tuple[dict[str, Manifest], dict[str, tuple[Manifest, ...]]]:
        """Pods of these Jobs and Deployments, because anybody may put our labels on a pod of their own; and
        those of other Jobs, by the Job's name."""
        job_uids = {job["metadata"]["uid"] for job in jobs.values()}
        pods: dict[str, Manifest] = {}
        orphans: dict[str, tuple[Manifest, ...]] = {}
        for pod in self._caches.pods.indexed(BY_RUN, uid).values():
            owner = controller(pod)
            # ReplicaSets are not watched; they carry their Deployment's name and a hash.
            replica_set = owner.get("kind") == "ReplicaSet" and (
                str(owner["name"]).rpartition("-")[0] in deployments
            )
            if controller_uid(pod) in job_uids or replica_set:
                pods[pod["metadata"]["name"]] = pod
            elif owner.get("kind") == "Job":
                orphans[owner["name"]] = (*orphans.get(owner["name"], ()), pod)
        return pods, orphans


def _is_going_record(resource: Resource) -> TypeGuard[Checkpoint | DatasetVersion]:
    is_record = isinstance(resource, Checkpoint | DatasetVersion)
    return is_record and resource.metadata.deletion_timestamp is not None


def _children(store: ObjectStore, uid: str) -> dict[str, Manifest]:
    return {child["metadata"]["name"]: child for child in store.indexed(BY_CONTROLLER, uid).values()}
