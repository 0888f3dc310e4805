# SPDX-License-Identifier: Apache-2.0
"""The DatasetVersion that a run or an Evaluation reads: resolves its reference to a Dataset."""

from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.meta import Resource
from finetune_operator.api.references import DatasetReference
from finetune_operator.manifests.labels import REFRESH_REQUESTED
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, Working
from finetune_operator.status.conditions import find_condition, is_true
from finetune_operator.status.explanations import UNDER_WAY
from finetune_operator.status.reasons import ConditionType, Reason


def resolve_version(
    ref: DatasetReference, user: Resource, snapshot: Snapshot
) -> DatasetVersion | Blocked | Working:
    """The named version, or the Dataset's newest one; else what the user of the rows waits for."""
    if ref.version is None:
        return _latest_version(ref.name, user, snapshot)
    version = _live(ref.version, snapshot)
    if version is not None and version.spec.dataset == ref.name:
        return version
    return Blocked(
        Reason.DATASET_VERSION_NOT_FOUND,
        f"DatasetVersion {ref.version} of Dataset {ref.name} does not exist in namespace {user.namespace},"
        f" or is being deleted: name another one in a new {user.kind} (kubectl get dsv -n"
        f" {user.namespace} lists those that exist)",
    )


def check_location(version: DatasetVersion, store: str, why: str) -> Blocked | Working | None:
    """Whether the rows are in this store; `why` says who needs them there, as the start of a clause."""
    if store in version.status.locations:
        return None
    if not version.status.locations:
        return Working(
            Reason.WAITING_FOR_DATASET, f"waiting for the location of DatasetVersion {version.name}"
        )
    return Blocked(
        Reason.DATASET_NOT_IN_STORE,
        f"DatasetVersion {version.name} is in {', '.join(version.status.locations)}, but {why}"
        f" {store}: set spec.store.uri of Dataset {version.spec.dataset} to {store}, and the"
        " operator prepares it there too",
    )


def _live(name: str | None, snapshot: Snapshot) -> DatasetVersion | None:
    """The DatasetVersion with this name, unless it is being deleted: its rows may be removed already."""
    version = snapshot.datasetversions.get(name or "")
    return version if version is not None and version.metadata.deletion_timestamp is None else None


def _latest_version(name: str, user: Resource, snapshot: Snapshot) -> DatasetVersion | Blocked | Working:
    dataset = snapshot.datasets.get(name)
    if dataset is None:
        return Blocked(
            Reason.DATASET_NOT_FOUND,
            f"Dataset {name} does not exist in namespace {user.namespace}: create it",
        )
    status = dataset.status
    current = status.observed_generation == dataset.metadata.generation
    stalled = find_condition(status.conditions, ConditionType.STALLED)
    if current and stalled is not None:
        return Blocked(
            Reason.DATASET_FAILED,
            f"Dataset {name} failed with {stalled.reason}: {stalled.message}",
            requeue_after=None,
        )
    state = find_condition(status.conditions, ConditionType.RECONCILING)
    if current and state is not None and state.reason not in UNDER_WAY:
        return _blocked_by(dataset)
    if not current or not is_true(status.conditions, ConditionType.READY):
        return Working(Reason.WAITING_FOR_DATASET, f"waiting for Dataset {name} to be prepared")
    return _live(status.latest_version, snapshot) or Working(
        Reason.WAITING_FOR_DATASET,
        f"waiting for DatasetVersion {status.latest_version}. If it was deleted, request a new preparation:"
        f" kubectl annotate dataset {name} {REFRESH_REQUESTED}=again --overwrite -n {user.namespace}",
    )


def _blocked_by(dataset: Dataset) -> Blocked:
    """A user or an administrator must act on the Dataset; its users continue when the Dataset does."""
    state = find_condition(dataset.status.conditions, ConditionType.RECONCILING)
    why = f", which is blocked. {state.reason}: {state.message}" if state is not None else ""
    return Blocked(Reason.WAITING_FOR_DATASET, f"waiting for Dataset {dataset.name}{why}", requeue_after=None)
