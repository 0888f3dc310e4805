# SPDX-License-Identifier: Apache-2.0
"""The run that a FineTuneJob represents: its own, or the run of a backup that was restored with another uid.

A backup keeps annotations and loses uid and status; a manifest from Git has neither. The operator writes an
annotation when it records a run's Checkpoints. The annotation distinguishes a restored run from a new one.
It also records that a run was cancelled, because Git may remove `spec.cancel` before the pods have ended.
"""

import json
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.manifests.labels import RECORDED_RUN, short_hash
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.model_lines import CheckpointIndex
from finetune_operator.reconcile.records.content_removal import Record, finalizer_update
from finetune_operator.reconcile.records.retention import versions_of
from finetune_operator.status.conditions import is_finished

CANCELLED: Final = ".cancelled"


def mark(job: FineTuneJob, *, cancelled: bool = False) -> str:
    """`<uid>.<16 hex>`: the run, and a hash of its name and spec. A cancelled one ends in `.cancelled`."""
    return f"{recorded_run(job) or job.uid}.{_fingerprint(job)}{CANCELLED if cancelled else ''}"


def recorded_run(job: FineTuneJob) -> str | None:
    """uid of the run in the annotation; None without the annotation, or if its name or spec differ."""
    uid, _, fingerprint = (
        job.metadata.annotations.get(RECORDED_RUN, "").removesuffix(CANCELLED).partition(".")
    )
    return uid if uid and fingerprint == _fingerprint(job) else None


def uids(job: FineTuneJob) -> frozenset[str]:
    """uids of the run that the object represents: its own, and the one in the annotation."""
    return frozenset(filter(None, (job.uid, recorded_run(job))))


def is_recorded_as_cancelled(job: FineTuneJob) -> bool:
    """Whether the annotation says that the run was cancelled, whatever `spec.cancel` is now."""
    return recorded_run(job) is not None and job.metadata.annotations[RECORDED_RUN].endswith(CANCELLED)


def accepts_cancel(job: FineTuneJob, index: CheckpointIndex) -> bool:
    """Whether this pass begins to cancel the run.

    A run that has finished keeps its end. If the status with its end was lost, its Checkpoints show it.
    """
    if not job.spec.cancel or is_finished(job) or is_recorded_as_cancelled(job):
        return False
    return not (has_lost_status(job, index) and checkpoints(job, index))


def checkpoints(job: FineTuneJob, index: CheckpointIndex) -> tuple[Checkpoint, ...]:
    """The Checkpoints of the run that the object represents, in the order of their steps."""
    return tuple(sorted(index.of_run(recorded_run(job) or job.uid), key=lambda each: each.spec.step))


def records(job: FineTuneJob, snapshot: Snapshot) -> tuple[Record, ...]:
    """The run's Checkpoints, and the DatasetVersions of its dataset.source."""
    return (*checkpoints(job, snapshot.checkpoints), *versions_of(job, snapshot))


def metadata(job: FineTuneJob, *, recorded: bool, cancelled: bool) -> Manifest | None:
    """Metadata that is missing.

    They are the finalizer, and the annotation once Checkpoints are `recorded` or `spec.cancel` is accepted.
    """
    new = finalizer_update(job) or {}
    if cancelled or (recorded and recorded_run(job) is None):
        new["annotations"] = {RECORDED_RUN: mark(job, cancelled=cancelled)}
    return new or None


def has_lost_status(job: FineTuneJob, index: CheckpointIndex) -> bool:
    """Whether the run was trained but its status does not show it, as after a restore from a backup."""
    if job.status.checkpoints:
        return False
    run = recorded_run(job)
    if run is not None and run != job.uid:
        return True
    return job.status.observed_generation < 0 and bool(index.of_run(job.uid))


def _fingerprint(job: FineTuneJob) -> str:
    # Without defaults: those of a newer release must not change the fingerprint.
    mutable: dict[str, bool | set[str]] = {
        "suspend": True,
        "cancel": True,
        "children_ttl_seconds": True,
        "compute": {"max_run_seconds"},
    }
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=mutable)
    if not spec.get("compute", True):
        del spec["compute"]
    return short_hash(job.name, json.dumps(spec, sort_keys=True), length=16)
