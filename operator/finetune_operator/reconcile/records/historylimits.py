# SPDX-License-Identifier: Apache-2.0
"""Delete records beyond a history limit, except those that are still needed.

Each record is checked in its own pass, so the cost does not grow with the history. As after a deletion by a
user, the content is removed only if the record's deletionPolicy is Delete.
"""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.manifests.labels import OPERATOR, OWNER_KIND
from finetune_operator.plan import Delete, Event, Plan
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.platform import profiles
from finetune_operator.reconcile.records.finalizer import Record
from finetune_operator.reconcile.records.ownership import deletion_target
from finetune_operator.reconcile.records.users import needed_by
from finetune_operator.status.conditions import is_finished
from finetune_operator.status.reasons import EventReason


def enforce_limit(record: Record, snapshot: Snapshot) -> Plan | None:
    """Delete the record if it is beyond its history limit; None if it stays."""
    found = (
        _checkpoint_limit(record, snapshot)
        if isinstance(record, Checkpoint)
        else _version_limit(record, snapshot)
    )
    if found is None:
        return None
    limit, field = found
    newer = snapshot.newer()
    if newer == 0 or newer < limit or _is_kept(record, snapshot):
        return None
    message = (
        f"{record.kind} {record.name} is deleted: {newer} newer ones exist, and {field} is {limit};"
        f" its content {'is removed' if record.spec.deletion_policy == 'Delete' else 'stays in the store'}"
    )
    return Plan(
        delete=(Delete(deletion_target(record), "Background"),),
        events=(Event("Normal", EventReason.HISTORY_LIMIT_EXCEEDED, message),),
    )


def _is_kept(record: Record, snapshot: Snapshot) -> bool:
    """Whether the record is needed, or a user has changed it."""
    return (
        is_edited(record) or snapshot.checkpoints.is_origin(record.name) or bool(needed_by(record, snapshot))
    )


def is_edited(record: Record) -> bool:
    """Whether anyone but this operator has set a field of the record, including its approval or a label.

    A record without managed fields counts as edited.
    """
    managers = {each.manager for each in record.metadata.managed_fields if not each.subresource}
    return managers != {OPERATOR}


def _run(checkpoint: Checkpoint, snapshot: Snapshot) -> FineTuneJob | None:
    """The finished run that made the Checkpoint; without it the limit is unknown."""
    made_by = checkpoint.spec.lineage.job
    run = snapshot.finetunejobs.get(made_by.name)
    return run if run is not None and run.uid == made_by.uid and is_finished(run) else None


def _checkpoint_limit(checkpoint: Checkpoint, snapshot: Snapshot) -> tuple[int, str] | None:
    """The limit and the field that sets it; None if this Checkpoint has no limit."""
    limited = any(each.spec.limits.checkpoints is not None for each in snapshot.profiles.values())
    if not limited or checkpoint.status.promoted_at is not None:
        return None
    run = _run(checkpoint, snapshot)
    if run is None or _represents_run(checkpoint, run, snapshot):
        return None
    named = run.status.resolved.profile or run.spec.compute.profile
    # The run has used the profile, so the present labels of the namespace do not matter.
    profile = profiles.named_profile(named, "spec.compute.profile", run.namespace, snapshot)
    if not isinstance(profile, ComputeProfile) or profile.spec.limits.checkpoints is None:
        return None
    return profile.spec.limits.checkpoints, f"limits.checkpoints of ComputeProfile {profile.name}"


def _represents_run(checkpoint: Checkpoint, run: FineTuneJob, snapshot: Snapshot) -> bool:
    """Whether the run always keeps this Checkpoint: the evaluated one, or else that of the last step."""
    live = [each for each in snapshot.checkpoints.of_run(run.uid) if each.metadata.deletion_timestamp is None]
    evaluated = run.status.evaluation.checkpoint if run.status.evaluation is not None else None
    kept = max(live, key=lambda each: (each.name == evaluated, each.spec.step, each.name), default=None)
    return kept is None or kept.name == checkpoint.name


def _version_limit(version: DatasetVersion, snapshot: Snapshot) -> tuple[int, str] | None:
    """The limit and the field that sets it; None if there is none or this is the latest version."""
    if version.metadata.labels.get(OWNER_KIND) != "Dataset":
        return None
    dataset = snapshot.datasets.get(version.spec.dataset)
    if dataset is None or dataset.status.latest_version in {None, version.name}:
        return None
    limit = dataset.spec.version_history_limit
    return None if limit is None else (limit, f"spec.versionHistoryLimit of Dataset {dataset.name}")
