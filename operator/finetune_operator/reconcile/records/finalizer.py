# SPDX-License-Identifier: Apache-2.0
"""The finalizer of records and their owners. It delays deletion until the content is removed."""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.manifests.labels import FINALIZER
from finetune_operator.plan import Manifest

Record = Checkpoint | DatasetVersion
Owner = FineTuneJob | Dataset | Evaluation


def finalizer_update(resource: Owner | Record) -> Manifest | None:
    """Metadata that makes the finalizer match the deletion policy; None if it matches already."""
    wanted = resource.spec.deletion_policy == "Delete"
    if has_finalizer(resource) == wanted:
        return None
    return {"finalizers": [*_others(resource), FINALIZER]} if wanted else without_finalizer(resource)


def without_finalizer(resource: Owner | Record) -> Manifest:
    """Metadata without our finalizer."""
    return {"finalizers": _others(resource)}


def has_finalizer(resource: Owner | Record) -> bool:
    """Whether the object has our finalizer, so it stays until the operator removes it."""
    return FINALIZER in resource.metadata.finalizers


def _others(resource: Owner | Record) -> list[str]:
    return [each for each in resource.metadata.finalizers if each != FINALIZER]
