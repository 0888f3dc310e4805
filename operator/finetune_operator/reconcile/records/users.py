# SPDX-License-Identifier: Apache-2.0
"""Runs, Evaluations and endpoints that need the content of a record."""

from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation import LiveComparison
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.reconcile.inputs.indexes import address
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.platform.storage import is_same_place
from finetune_operator.reconcile.records.finalizer import Record
from finetune_operator.status.conditions import find, is_finished
from finetune_operator.status.reasons import ConditionType, Reason


def waits_for_users(record: Record) -> bool:
    """Whether the record is being deleted and its content stays until no run or endpoint needs it."""
    state = find(record.status.conditions, ConditionType.RECONCILING)
    is_terminating = record.metadata.deletion_timestamp is not None
    return is_terminating and state is not None and state.reason == Reason.IN_USE


def needed_by(record: Record, snapshot: Snapshot) -> tuple[str, ...]:
    """Endpoints, unfinished runs and Evaluations that read the record's content, or will.

    Endpoints of other namespaces count if the content is in a bucket and they have served it: a pin alone is
    the claim of a tenant who knows a digest. They are not named.
    """
    here = address(record.namespace, record.name)
    runs = {
        f"FineTuneJob {job.name}"
        for job in snapshot.runs_with(here)
        if job.namespace == record.namespace
        and job.metadata.deletion_timestamp is None
        and not is_finished(job)
        and _reads(job, record)
    }
    runs |= {
        f"Evaluation {evaluation.name}"
        for evaluation in snapshot.evaluations_with(here)
        if evaluation.namespace == record.namespace
        and evaluation.metadata.deletion_timestamp is None
        and not is_finished(evaluation)
        and _measures(evaluation, record)
    }
    if isinstance(record, DatasetVersion):
        return tuple(sorted(runs))
    candidates = (*snapshot.endpoints_with(here), *snapshot.endpoints_with(record.spec.digest))
    endpoints = {
        f"InferenceDeployment {endpoint.name}"
        for endpoint in candidates
        if endpoint.namespace == record.namespace
        and (_holds(endpoint, record.spec.digest) or _pins(endpoint, record.name))
    }
    elsewhere = {
        "an InferenceDeployment in another namespace"
        for endpoint in candidates
        if endpoint.namespace != record.namespace
        and is_same_place(record.spec.uri, endpoint.namespace, record.namespace)
        and _serves(endpoint, record.spec.digest)
    }
    return tuple(sorted(endpoints | elsewhere | runs))


def _holds(endpoint: InferenceDeployment, digest: str) -> bool:
    """Whether the endpoint serves or pins this content.

    Only the digest decides, because one place in a store can have several spellings.
    """
    pinned = any(model.pin is not None and model.pin.digest == digest for model in endpoint.spec.models)
    return (pinned and endpoint.metadata.deletion_timestamp is None) or _serves(endpoint, digest)


def _serves(endpoint: InferenceDeployment, digest: str) -> bool:
    """Whether the revision that has the requests of the endpoint has this content."""
    served = any(model.digest == digest for model in endpoint.status.models)
    return served and endpoint.metadata.deletion_timestamp is None


def _pins(endpoint: InferenceDeployment, checkpoint: str) -> bool:
    pinned = any(
        model.pin is not None and model.pin.checkpoint == checkpoint for model in endpoint.spec.models
    )
    return pinned and endpoint.metadata.deletion_timestamp is None


def _measures(evaluation: Evaluation, record: Record) -> bool:
    """Whether it reads the record, or will. One that waits does not start with a terminating record."""
    resolved = evaluation.status.resolved
    begun, is_live = resolved.dataset_version is not None, record.metadata.deletion_timestamp is None
    if isinstance(record, DatasetVersion):
        names = {resolved.dataset_version if begun else evaluation.spec.dataset.ref.version}
    else:
        names = set(evaluation.spec.checkpoints)
    compared = evaluation.status.live
    compares = compared is not None and compared.checkpoint == record.name and not evaluation.spec.suspend
    return (record.name in names and (begun or is_live)) or compares


def readers_of(record: Record, snapshot: Snapshot) -> tuple[str, ...]:
    """Unfinished runs that read this content through another record, which may be terminating too."""
    return _evaluations_that_read(record, snapshot) + tuple(
        f"FineTuneJob {job.name}"
        if job.namespace == record.namespace
        else "a FineTuneJob in another namespace"
        for job in snapshot.runs_with(record.spec.digest)
        if job.metadata.deletion_timestamp is None
        and not is_finished(job)
        and is_same_place(job.status.resolved.store or "", job.namespace, record.namespace)
        and _has_read(job, record)
    )


def _evaluations_that_read(record: Record, snapshot: Snapshot) -> tuple[str, ...]:
    return tuple(
        f"Evaluation {evaluation.name}"
        if evaluation.namespace == record.namespace
        else "an Evaluation in another namespace"
        for evaluation in snapshot.evaluations_with(record.spec.digest)
        if evaluation.metadata.deletion_timestamp is None
        and not is_finished(evaluation)
        and _is_reachable(record, evaluation.namespace)
    )


def _is_reachable(record: Record, namespace: str) -> bool:
    """Whether pods of this namespace can read the record's content."""
    stores = record.status.locations if isinstance(record, DatasetVersion) else (record.spec.uri,)
    return any(is_same_place(store, namespace, record.namespace) for store in stores)


def _has_read(job: FineTuneJob, record: Record) -> bool:
    if isinstance(record, DatasetVersion):
        resolved = job.status.resolved
        return record.spec.digest in {resolved.dataset_digest, resolved.evaluation_dataset_digest}
    made = any(checkpoint.digest == record.spec.digest for checkpoint in job.status.checkpoints)
    compared = _compared(job)
    compares = compared is not None and compared.digest == record.spec.digest
    return made or compares or job.status.resolved.parent_digest == record.spec.digest


def _reads(job: FineTuneJob, record: Record) -> bool:
    if isinstance(record, DatasetVersion):
        evaluated, resolved = job.spec.evaluation, job.status.resolved
        rows = None if evaluated is None else evaluated.dataset
        references = (job.spec.dataset.ref, None if rows is None else rows.ref)
        return record.name in {resolved.dataset_version, resolved.evaluation_dataset_version} or any(
            ref is not None and ref.name == record.spec.dataset and ref.version == record.name
            for ref in references
        )
    made = any(checkpoint.name == record.name for checkpoint in job.status.checkpoints)
    # A run does not start with a record that is being deleted, so a waiting run delays no deletion.
    waits = record.metadata.deletion_timestamp is None and job.spec.base_model.checkpoint == record.name
    compared = _compared(job)
    compares = compared is not None and compared.checkpoint == record.name
    return made or waits or compares or job.status.resolved.parent_checkpoint == record.name


def _compared(job: FineTuneJob) -> LiveComparison | None:
    """The champion that a pod of the run measures, or will."""
    measures = job.status.evaluation is None and not job.spec.suspend
    return job.status.live if measures else None
