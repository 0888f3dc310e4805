# SPDX-License-Identifier: Apache-2.0
"""The run that a FineTuneJob represents: its own, or the run of a backup that was restored with another uid.

A backup keeps annotations and loses uid and status; a manifest from Git has neither. The operator writes an
annotation when it records a run's Checkpoints. The annotation distinguishes a restored run from a new one.
"""

import json

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.manifests.labels import RECORDED_RUN, short_hash
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.lines.checkpointindex import CheckpointIndex
from finetune_operator.reconcile.records.finalizer import Record, finalizer_update
from finetune_operator.reconcile.records.ownership import versions_of


def mark(job: FineTuneJob) -> str:
    """`<uid>.<16 hex>`: the run, and a hash of its name and spec."""
    return f"{job.uid}.{_fingerprint(job)}"


def recorded_run(job: FineTuneJob) -> str | None:
    """uid of the run in the annotation; None without the annotation, or if its name or spec differ."""
    uid, _, fingerprint = job.metadata.annotations.get(RECORDED_RUN, "").partition(".")
    return uid if uid and fingerprint == _fingerprint(job) else None


def checkpoints(job: FineTuneJob, index: CheckpointIndex) -> tuple[Checkpoint, ...]:
    """The Checkpoints of the run that the object represents, in the order of their steps."""
    return tuple(sorted(index.of_run(recorded_run(job) or job.uid), key=lambda each: each.spec.step))


def records(job: FineTuneJob, snapshot: Snapshot) -> tuple[Record, ...]:
    """The run's Checkpoints, and the DatasetVersions of its dataset.source."""
    return (*checkpoints(job, snapshot.checkpoints), *versions_of(job, snapshot))


def metadata(job: FineTuneJob, *, recorded: bool) -> Manifest | None:
    """Metadata that is missing: the finalizer, and the annotation once Checkpoints are `recorded`."""
    new = finalizer_update(job) or {}
    if recorded and recorded_run(job) is None:
        new["annotations"] = {RECORDED_RUN: mark(job)}
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
        "children_ttl_seconds": True,
        "compute": {"max_run_seconds"},
    }
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=mutable)
    if not spec.get("compute", True):
        del spec["compute"]
    return short_hash(job.name, json.dumps(spec, sort_keys=True), length=16)
