# SPDX-License-Identifier: Apache-2.0
"""The Checkpoints and the rows of an Evaluation, chosen once and kept in `status.resolved`."""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.evaluationresourcestatus import ResultStore
from finetune_operator.manifests.weightsreference import WeightsReference
from finetune_operator.reconcile.evaluation.assessment import Assessment
from finetune_operator.reconcile.lines.scores import is_resolved
from finetune_operator.reconcile.records.versions import check_location, resolve_version
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.status.reasons import Reason
from finetune_operator.status.reserved import not_implemented


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
    version = resolve_version(evaluation.spec.dataset.ref, evaluation, run.snapshot)
    if not isinstance(version, DatasetVersion):
        return version
    for checkpoint in checkpoints:
        store = WeightsReference.of(checkpoint).store
        elsewhere = check_location(version, store, f"Checkpoint {checkpoint.name} is in")
        if elsewhere is not None:
            return elsewhere
    empty = _without_rows(run, version)
    if empty is not None:
        return empty
    if isinstance(run.prerequisites, Blocked):
        return run.prerequisites
    run.resolve(
        dataset_version=version.name,
        dataset_digest=version.spec.digest,
        checkpoint_digests=tuple(checkpoint.spec.digest for checkpoint in checkpoints),
        stores=tuple(
            ResultStore(uri=reference.store, credentials=reference.credentials)
            for reference in map(WeightsReference.of, checkpoints)
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


def _without_rows(run: Assessment, version: DatasetVersion) -> Failed | None:
    split = run.evaluation.spec.dataset.split
    if any(each.name == split and each.rows for each in version.spec.splits):
        return None
    others = ", ".join(f"{each.name} ({each.rows} rows)" for each in version.spec.splits if each.rows)
    return Failed(
        Reason.INVALID_SPEC,
        f"spec.dataset.split: the {split} split of DatasetVersion {version.name} is empty: create a new"
        f" Evaluation on another split of it ({others}), or raise split.{split} of the Dataset",
    )
