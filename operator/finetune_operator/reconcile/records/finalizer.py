"""The finalizer of records and of their owners: it waits until their content is removed."""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.manifests.labels import FINALIZER
from finetune_operator.plan import Manifest

Record = Checkpoint | DatasetVersion
Owner = FineTuneJob | Dataset


def finalizer_update(resource: Owner | Record) -> Manifest | None:
    """Metadata with the finalizer where the policy is Delete, else without; None where nothing changes."""
    wanted = resource.spec.deletion_policy == "Delete"
    if has_finalizer(resource) == wanted:
        return None
    return {"finalizers": [*_others(resource), FINALIZER]} if wanted else without_finalizer(resource)


def without_finalizer(resource: Owner | Record) -> Manifest:
    """Metadata without the finalizer."""
    return {"finalizers": _others(resource)}


def has_finalizer(resource: Owner | Record) -> bool:
    """Whether the object stays until this operator has let it go."""
    return FINALIZER in resource.metadata.finalizers


def _others(resource: Owner | Record) -> list[str]:
    return [each for each in resource.metadata.finalizers if each != FINALIZER]
