"""Which run a FineTuneJob stands for: its own, or the one that a backup of it brings back under another uid.

A backup keeps annotations and drops uid and status; a manifest from Git has neither. So the annotation that
is written when a run's Checkpoints are recorded tells a restored run from one that was made again.
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
    """`<uid>.<16 hex>`: the run, and the name and spec that it was run with."""
    return f"{job.uid}.{_fingerprint(job)}"


def recorded_run(job: FineTuneJob) -> str | None:
    """uid of the run that the annotation names; None without one, or with that of another name or spec."""
    uid, _, fingerprint = job.metadata.annotations.get(RECORDED_RUN, "").partition(".")
    return uid if uid and fingerprint == _fingerprint(job) else None


def checkpoints(job: FineTuneJob, index: CheckpointIndex) -> tuple[Checkpoint, ...]:
    """The Checkpoints of the run that the object stands for, in the order of their steps."""
    return tuple(sorted(index.of_run(recorded_run(job) or job.uid), key=lambda each: each.spec.step))


def records(job: FineTuneJob, snapshot: Snapshot) -> tuple[Record, ...]:
    """The Checkpoints, and the DatasetVersions of inline data, that the run has made."""
    return (*checkpoints(job, snapshot.checkpoints), *versions_of(job, snapshot))


def metadata(job: FineTuneJob, *, recorded: bool) -> Manifest | None:
    """What the metadata should say that it does not: the finalizer, and once `recorded` the annotation."""
    new = finalizer_update(job) or {}
    if recorded and recorded_run(job) is None:
        new["annotations"] = {RECORDED_RUN: mark(job)}
    return new or None


def has_lost_status(job: FineTuneJob, index: CheckpointIndex) -> bool:
    """Whether the run was trained and its status does not say so, as after a restore from a backup."""
    if job.status.checkpoints:
        return False
    run = recorded_run(job)
    if run is not None and run != job.uid:
        return True
    return job.status.observed_generation < 0 and bool(index.of_run(job.uid))


def _fingerprint(job: FineTuneJob) -> str:
    # Defaults are left out: those of a newer release must not make it another run.
    mutable: dict[str, bool | set[str]] = {
        "suspend": True,
        "children_ttl_seconds": True,
        "compute": {"max_run_seconds"},
    }
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=mutable)
    if not spec.get("compute", True):
        del spec["compute"]
    return short_hash(job.name, json.dumps(spec, sort_keys=True), length=16)
