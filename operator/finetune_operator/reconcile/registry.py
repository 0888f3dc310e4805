"""The reconcilers of all kinds in one table; the controller looks nowhere else."""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Resource
from finetune_operator.plan import Plan
from finetune_operator.reconcile import (
    checkpoint,
    computeprofile,
    dataset,
    datasetversion,
    finetunejob,
    inferencedeployment,
)
from finetune_operator.reconcile.snapshot import Snapshot

R = TypeVar("R", bound=Resource)
T = TypeVar("T")


def _of(model: type[R], function: Callable[[R, Snapshot], T]) -> Callable[[Resource, Snapshot], T]:
    """The function for any resource; a resource of another kind is a programming error."""

    def call(resource: Resource, snapshot: Snapshot) -> T:
        if not isinstance(resource, model):
            raise TypeError(f"expected {model.__name__}, got {type(resource).__name__}")
        return function(resource, snapshot)

    return call


RECONCILERS: Final[Mapping[str, Callable[[Resource, Snapshot], Plan]]] = {
    "FineTuneJob": _of(FineTuneJob, finetunejob.reconcile),
    "Dataset": _of(Dataset, dataset.reconcile),
    "DatasetVersion": _of(DatasetVersion, datasetversion.reconcile),
    "Checkpoint": _of(Checkpoint, checkpoint.reconcile),
    "InferenceDeployment": _of(InferenceDeployment, inferencedeployment.reconcile),
    "ComputeProfile": _of(ComputeProfile, computeprofile.reconcile),
}
"""What should be done now for one object."""

CLAIMS: Final[Mapping[str, Callable[[Resource, Snapshot], frozenset[str]]]] = {
    "FineTuneJob": _of(FineTuneJob, finetunejob.claims),
    "Dataset": _of(Dataset, dataset.claims),
    "DatasetVersion": _of(DatasetVersion, datasetversion.claims),
    "Checkpoint": _of(Checkpoint, checkpoint.claims),
    "InferenceDeployment": _of(InferenceDeployment, inferencedeployment.claims),
    "ComputeProfile": _of(ComputeProfile, computeprofile.claims),
}
"""PersistentVolumeClaims, by name, that the reconciler wants to see in `Snapshot.claims`."""
