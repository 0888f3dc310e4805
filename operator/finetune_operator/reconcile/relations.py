"""Which objects to look at again when another one has changed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.kinds import KINDS_BY_NAME
from finetune_operator.build.labels import OWNER_KIND, OWNER_NAME
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.ownership import waits_for_users
from finetune_operator.reconcile.world import CheckpointIndex
from finetune_operator.status.conditions import find, is_finished, is_settled
from finetune_operator.status.reasons import ConditionType, Reason


class Lookup(Protocol):
    """Listings from the controller's caches; a namespace of None means all namespaces."""

    def finetunejobs(self, namespace: str | None) -> Iterable[FineTuneJob]: ...

    def datasets(self, namespace: str | None) -> Iterable[Dataset]: ...

    def inferencedeployments(self, namespace: str | None) -> Iterable[InferenceDeployment]: ...

    def computeprofiles(self) -> Iterable[ComputeProfile]: ...

    def checkpoints(self, namespace: str) -> CheckpointIndex: ...

    def going_checkpoints(self) -> Iterable[Checkpoint]:
        """Those of all namespaces that are being deleted."""


def related(kind: str, manifest: Manifest, lookup: Lookup) -> frozenset[Key]:
    """Keys of the objects whose state may depend on this one, itself left out.

    `kind` is one of ours or that of a child (Job, Pod, Deployment, Service, NetworkPolicy,
    PodDisruptionBudget); `manifest` is the object as it is now, or as it last was when it has been deleted.
    """
    return frozenset(RELATIONS.get(kind, _owner)(manifest, lookup))


def _namespace(manifest: Manifest) -> str:
    namespace: str = manifest["metadata"].get("namespace", "")
    return namespace


def _owner(manifest: Manifest, _: Lookup) -> Iterator[Key]:
    labels = manifest["metadata"].get("labels", {})
    kind, name = labels.get(OWNER_KIND), labels.get(OWNER_NAME)
    if kind in KINDS_BY_NAME and name:
        yield Key(kind, _namespace(manifest), name)


def _of_finetunejob(manifest: Manifest, lookup: Lookup) -> Iterator[Key]:
    namespace = _namespace(manifest)
    for checkpoint in lookup.checkpoints(namespace).of_run(manifest["metadata"]["uid"]):
        yield Key("Checkpoint", namespace, checkpoint.name)
    # What it continues from may wait for its end to be removed.
    parent = lookup.checkpoints(namespace).get(manifest["spec"]["baseModel"].get("checkpoint", ""))
    if parent is not None and waits_for_users(parent):
        yield Key("Checkpoint", namespace, parent.name)


def _waiting_for_dataset(namespace: str, dataset: str, lookup: Lookup) -> Iterator[Key]:
    for job in lookup.finetunejobs(namespace):
        ref = job.spec.dataset.ref
        if ref is not None and ref.name == dataset and not is_finished(job):
            yield Key("FineTuneJob", namespace, job.name)


def _of_dataset(manifest: Manifest, lookup: Lookup) -> Iterator[Key]:
    namespace = _namespace(manifest)
    yield from _waiting_for_dataset(namespace, manifest["metadata"]["name"], lookup)
    latest = manifest.get("status", {}).get("latestVersion")
    if latest:
        yield Key("DatasetVersion", namespace, latest)


def _of_datasetversion(manifest: Manifest, lookup: Lookup) -> Iterator[Key]:
    namespace = _namespace(manifest)
    yield from _waiting_for_dataset(namespace, manifest["spec"]["dataset"], lookup)
    yield from _owner(manifest, lookup)


def _of_checkpoint(manifest: Manifest, lookup: Lookup) -> Iterator[Key]:
    namespace, name = _namespace(manifest), manifest["metadata"]["name"]
    model = manifest["spec"]["model"]
    yield Key("FineTuneJob", namespace, manifest["spec"]["lineage"]["job"]["name"])
    for job in lookup.finetunejobs(namespace):
        if job.spec.base_model.checkpoint == name and not is_finished(job):
            yield Key("FineTuneJob", namespace, job.name)
    for endpoint in lookup.inferencedeployments(namespace):
        if any(
            (served.follow is not None and served.follow.model == model)
            or (served.pin is not None and served.pin.checkpoint == name)
            for served in endpoint.spec.models
        ):
            yield Key("InferenceDeployment", namespace, endpoint.name)
    for other in lookup.checkpoints(namespace).of_model(model):
        # A new champion matters to those of the line that still wait for their promotion, and to their runs.
        if other.name != name and other.status.promoted_at is None:
            yield Key("Checkpoint", namespace, other.name)
            yield Key("FineTuneJob", namespace, other.spec.lineage.job.name)


def _of_inferencedeployment(manifest: Manifest, lookup: Lookup) -> Iterator[Key]:
    namespace, name = _namespace(manifest), manifest["metadata"]["name"]
    serves = {model.get("checkpoint") for model in manifest.get("status", {}).get("models", ())}
    for checkpoint in lookup.checkpoints(namespace):
        if checkpoint.name in serves or name in checkpoint.status.in_use_by:
            yield Key("Checkpoint", namespace, checkpoint.name)
    # What it no longer serves or pins may be removed now, whichever namespace has the record.
    for checkpoint in lookup.going_checkpoints():
        if waits_for_users(checkpoint):
            yield Key("Checkpoint", checkpoint.namespace, checkpoint.name)
    # One that has rolled out makes room for those that wait, wherever they are.
    for other in lookup.inferencedeployments(None):
        working = find(other.status.conditions, ConditionType.RECONCILING)
        if working is not None and working.reason == Reason.QUEUED:
            yield Key("InferenceDeployment", other.namespace, other.name)


def _of_computeprofile(manifest: Manifest, lookup: Lookup) -> Iterator[Key]:
    name = manifest["metadata"]["name"]
    for profile in lookup.computeprofiles():
        # Two defaults are a conflict of both.
        if profile.is_default and profile.name != name:
            yield Key("ComputeProfile", "", profile.name)
    # Who names no profile depends on which one is the default: this one, or no longer this one.
    concerned = (name, None)
    for job in lookup.finetunejobs(None):
        evaluation = job.spec.evaluation
        judged_on = evaluation.profile if evaluation is not None else None
        uses = job.spec.compute.profile in concerned or judged_on == name
        if uses and not is_finished(job):
            yield Key("FineTuneJob", job.namespace, job.name)
    for dataset in lookup.datasets(None):
        if not is_settled(dataset):
            yield Key("Dataset", dataset.namespace, dataset.name)
    for endpoint in lookup.inferencedeployments(None):
        if endpoint.spec.compute.profile in concerned:
            yield Key("InferenceDeployment", endpoint.namespace, endpoint.name)


RELATIONS: Final[Mapping[str, Callable[[Manifest, Lookup], Iterator[Key]]]] = {
    "FineTuneJob": _of_finetunejob,
    "Dataset": _of_dataset,
    "DatasetVersion": _of_datasetversion,
    "Checkpoint": _of_checkpoint,
    "InferenceDeployment": _of_inferencedeployment,
    "ComputeProfile": _of_computeprofile,
}
