# SPDX-License-Identifier: Apache-2.0
"""The Checkpoints and the rows of an Evaluation, chosen once and kept in `status.resolved`."""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation_resource import ResultStore
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.reconcile.evaluation.assessment import Assessment
from finetune_operator.reconcile.lines.scores import is_resolved
from finetune_operator.reconcile.measuring import check_custom_metrics, check_stores, resolve_rows
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.status.reasons import Reason
from finetune_operator.status.reserved_fields import not_implemented


def validate(run: Assessment) -> Failed | None:
    """Refuse fields that this release does not implement."""
    messages = not_implemented(run.evaluation.spec)
    return Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages)) if messages else None


def inputs(run: Assessment) -> Halt | None:
    """Resolve the Checkpoints and the DatasetVersion before anything is measured."""
    if run.status.resolved.dataset_version is not None:
        return None
    evaluation = run.evaluation
    checkpoints: list[Checkpoint] = []
    for name in evaluation.spec.checkpoints:
        checkpoint = find_checkpoint(run, name)
        if not isinstance(checkpoint, Checkpoint):
            return checkpoint
        checkpoints.append(checkpoint)
    version = resolve_rows(evaluation.spec.dataset, "spec.dataset", evaluation, run.snapshot)
    if not isinstance(version, DatasetVersion):
        return version
    references = {checkpoint.name: WeightsReference.of(checkpoint) for checkpoint in checkpoints}
    elsewhere = check_stores(
        version, ((reference.store, f"Checkpoint {name} is in") for name, reference in references.items())
    )
    if elsewhere is not None:
        return elsewhere
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    for reference in references.values():
        refused = check_custom_metrics(evaluation.spec, "spec.customMetrics", reference.store, found.profile)
        if refused is not None:
            return refused
    run.resolve(
        dataset_version=version.name,
        dataset_digest=version.spec.digest,
        checkpoint_digests=tuple(checkpoint.spec.digest for checkpoint in checkpoints),
        stores=tuple(
            ResultStore(uri=reference.store, credentials=reference.credentials)
            for reference in references.values()
        ),
    )
    return None


def find_checkpoint(run: Assessment, name: str) -> Checkpoint | Blocked | Failed:
    """The Checkpoint, unless it is missing, being deleted, or replaced.

    Once the Evaluation has begun, the deletion of a Checkpoint waits for it, so it is measured. One of the
    same name with other weights is not.
    """
    namespace, index = run.evaluation.namespace, run.snapshot.checkpoints
    begun = run.status.resolved.dataset_version is not None
    checkpoint = index.get(name) if begun else index.live(name)
    if checkpoint is None:
        return Blocked(
            Reason.CHECKPOINT_NOT_FOUND,
            f"Checkpoint {name} of spec.checkpoints does not exist in namespace {namespace}, or is being"
            " deleted: wait until it is recorded, restore it, or name another one in a new Evaluation"
            f" (kubectl get checkpoints -n {namespace})",
        )
    if not is_resolved(run.evaluation, checkpoint):
        return Failed(
            Reason.CHECKPOINT_REPLACED,
            f"Checkpoint {name} has other weights than at the start of the Evaluation, because it was deleted"
            " and created again: measure them with a new Evaluation",
        )
    return checkpoint
