"""What a pass sees: the world of one object, put together from the caches at the cost of its children."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeGuard, TypeVar

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Resource
from finetune_operator.caches import BY_CONTROLLER, BY_RUN, Caches
from finetune_operator.engine.store import ObjectStore, controller_uid
from finetune_operator.models import Models
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.turns import turn
from finetune_operator.reconcile.world import CheckpointIndex, OperatorFacts, RunProgress, World

R = TypeVar("R", bound=Resource)


class Surroundings:
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
        self._going: dict[tuple[str, str], Checkpoint] = {}
        kinds["Checkpoint"].subscribe(self._index)

    def resource(self, key: Key) -> Resource | None:
        """The object as a model; None where it does not exist or cannot be read."""
        return self._models[key.kind].get(key.namespace, key.name)

    def unknown(self, key: Key) -> tuple[str, ...]:
        """Paths of the object's values that only a newer release knows."""
        obj = self._caches.kinds[key.kind].get(key.namespace, key.name)
        return () if obj is None else self._models[key.kind].unknown(obj)

    def turn(self, key: Key) -> tuple[str, ...] | None:
        """What a pass over this object decides about together with others, which it must not overlap."""
        resource = self.resource(key)
        return None if resource is None else turn(resource, self._profiles.all())

    def world(
        self,
        resource: Resource,
        *,
        now: datetime,
        facts: OperatorFacts,
        service_accounts: frozenset[str],
        progress: RunProgress | None,
    ) -> World:
        """Everything but the claims, which need requests."""
        namespace = resource.namespace
        jobs = _children(self._caches.jobs, resource.uid)
        deployments = _children(self._caches.deployments, resource.uid)
        pods, orphans = self._pods(resource.uid, jobs, deployments)
        return World(
            now=now,
            facts=facts,
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
            inferencedeployments=self._inferencedeployments.named(namespace),
            profiles=self._profiles.named(""),
            progress=progress,
            same_content=self._same_content(resource),
            runs_everywhere=tuple(self._finetunejobs.all()) if _is_going_record(resource) else (),
            endpoints_everywhere=self._endpoints_everywhere(resource),
        )

    def finetunejobs(self, namespace: str | None) -> Iterable[FineTuneJob]:
        return _listed(self._finetunejobs, namespace)

    def datasets(self, namespace: str | None) -> Iterable[Dataset]:
        return _listed(self._datasets, namespace)

    def inferencedeployments(self, namespace: str | None) -> Iterable[InferenceDeployment]:
        return _listed(self._inferencedeployments, namespace)

    def computeprofiles(self) -> Iterable[ComputeProfile]:
        return self._profiles.all()

    def checkpoints(self, namespace: str) -> CheckpointIndex:
        return self._lines.get(namespace, CheckpointIndex())

    def going_checkpoints(self) -> Iterable[Checkpoint]:
        return tuple(self._going.values())

    def _index(self, old: Manifest | None, new: Manifest | None) -> None:
        metadata = (new or old or {})["metadata"]
        address = metadata["namespace"], metadata["name"]
        line = self._lines.setdefault(metadata["namespace"], CheckpointIndex())
        checkpoint = self._checkpoints.parse(new) if new is not None else None
        self._going.pop(address, None)
        if checkpoint is None:
            line.remove(metadata["name"])
            return
        line.put(checkpoint)
        if checkpoint.metadata.deletion_timestamp is not None:
            self._going[address] = checkpoint

    def _endpoints_everywhere(self, resource: Resource) -> tuple[InferenceDeployment, ...]:
        is_going = resource.metadata.deletion_timestamp is not None
        concerned = is_going or isinstance(resource, InferenceDeployment)
        return tuple(self._inferencedeployments.all()) if concerned else ()

    def _same_content(self, resource: Resource) -> tuple[Checkpoint | DatasetVersion, ...]:
        if not _is_going_record(resource):
            return ()
        records: Models[Any] = self._models[resource.kind]
        return tuple(
            record
            for record in records.all()
            if record.spec.digest == resource.spec.digest and record.uid != resource.uid
        )

    def _pods(
        self, uid: str, jobs: Mapping[str, Manifest], deployments: Mapping[str, Manifest]
    ) -> tuple[dict[str, Manifest], dict[str, tuple[Manifest, ...]]]:
        """Pods of these Jobs and Deployments, because anybody may put our labels on a pod of their own; and
        those of other Jobs, by the Job's name."""
        job_uids = {job["metadata"]["uid"] for job in jobs.values()}
        pods: dict[str, Manifest] = {}
        orphans: dict[str, tuple[Manifest, ...]] = {}
        for pod in self._caches.pods.indexed(BY_RUN, uid).values():
            controller = _controller(pod)
            # ReplicaSets are not watched; they carry their Deployment's name and a hash.
            replica_set = controller.get("kind") == "ReplicaSet" and (
                str(controller["name"]).rpartition("-")[0] in deployments
            )
            if controller_uid(pod) in job_uids or replica_set:
                pods[pod["metadata"]["name"]] = pod
            elif controller.get("kind") == "Job":
                orphans[controller["name"]] = (*orphans.get(controller["name"], ()), pod)
        return pods, orphans


def _is_going_record(resource: Resource) -> TypeGuard[Checkpoint | DatasetVersion]:
    is_record = isinstance(resource, Checkpoint | DatasetVersion)
    return is_record and resource.metadata.deletion_timestamp is not None


def _listed(models: Models[R], namespace: str | None) -> Iterable[R]:
    return models.all() if namespace is None else models.named(namespace).values()


def _children(store: ObjectStore, uid: str) -> dict[str, Manifest]:
    return {child["metadata"]["name"]: child for child in store.indexed(BY_CONTROLLER, uid).values()}


def _controller(obj: Manifest) -> Manifest:
    references = obj["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), {})
