# SPDX-License-Identifier: Apache-2.0
"""The reconcilers of all kinds in one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import Resource
from finetune_operator.plan import Plan
from finetune_operator.reconcile.checkpoint import reconciler as checkpoint
from finetune_operator.reconcile.computeprofile import reconciler as computeprofile
from finetune_operator.reconcile.dataset import reconciler as dataset
from finetune_operator.reconcile.datasetversion import reconciler as datasetversion
from finetune_operator.reconcile.evaluation import reconciler as evaluation
from finetune_operator.reconcile.finetunejob import reconciler as finetunejob
from finetune_operator.reconcile.inferencedeployment import reconciler as inferencedeployment
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.platform import queues
from finetune_operator.reconcile.records import deletion
from finetune_operator.reconcile.stages.jobs import refusal_needs

R = TypeVar("R", bound=Resource)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reconciler:
    """The reconciler of one kind.

    Attributes:
        reconcile: plans one pass over one object.
        needs: names the objects that the pass reads from `Snapshot.looked_up`, given a snapshot without them.
    """

    reconcile: Callable[[Resource, Snapshot], Plan]
    needs: Callable[[Resource, Snapshot], Needs]


def _of(
    model: type[R],
    reconcile: Callable[[R, Snapshot], Plan],
    needs: Callable[[R, Snapshot], Needs] = lambda *_: NOTHING,
) -> Reconciler:
    def all_needs(resource: R, snapshot: Snapshot) -> Needs:
        return queues.merge_needs(
            needs(resource, snapshot), queues.admission_needs(snapshot), refusal_needs(snapshot)
        )

    return Reconciler(_checked(model, reconcile), _checked(model, all_needs))


def _checked(model: type[R], function: Callable[[R, Snapshot], T]) -> Callable[[Resource, Snapshot], T]:
    """The function for any resource. It raises TypeError for a resource of another kind."""

    def call(resource: Resource, snapshot: Snapshot) -> T:
        if not isinstance(resource, model):
            raise TypeError(f"expected {model.__name__}, got {type(resource).__name__}")
        return function(resource, snapshot)

    return call


RECONCILERS: Final[Mapping[str, Reconciler]] = {
    "FineTuneJob": _of(FineTuneJob, finetunejob.reconcile, finetunejob.needs),
    "Dataset": _of(Dataset, dataset.reconcile, dataset.needs),
    "DatasetVersion": _of(DatasetVersion, datasetversion.reconcile, deletion.needs),
    "Checkpoint": _of(Checkpoint, checkpoint.reconcile, deletion.needs),
    "Evaluation": _of(Evaluation, evaluation.reconcile, evaluation.needs),
    "InferenceDeployment": _of(InferenceDeployment, inferencedeployment.reconcile, inferencedeployment.needs),
    "ComputeProfile": _of(ComputeProfile, computeprofile.reconcile),
}
