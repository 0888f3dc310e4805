# SPDX-License-Identifier: Apache-2.0
"""Runs that train nothing: finished, restored from a backup, cancelled, suspended, or being deleted."""

from collections.abc import Sequence
from typing import get_args

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_job_status import MAX_CHECKPOINTS, CheckpointSummary
from finetune_operator.api.labels import STAGE
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import RECORDED_RUN
from finetune_operator.manifests.volumes import run_folder
from finetune_operator.plan import Plan
from finetune_operator.reconcile.finetunejob.identity import checkpoints, records
from finetune_operator.reconcile.finetunejob.run import RunPass
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, Done, Failed, PlanBuilder, Suspended, Working
from finetune_operator.reconcile.records.content_removal import (
    Removal,
    has_finalizer,
    is_without_claim,
    release,
)
from finetune_operator.reconcile.records.retention import delete_records, delete_records_and_release
from finetune_operator.reconcile.stages.accounting import finish, has_finished
from finetune_operator.reconcile.stages.job_cleanup import count_running, delete_finished_children, stop_all
from finetune_operator.reconcile.stages.jobs import has_result
from finetune_operator.status.conditions import is_cancelled, status_manifest
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import Stage


def clean_up(job: FineTuneJob, snapshot: Snapshot) -> Plan:
    """Delete the children `childrenTTLSeconds` after the end."""
    draft = PlanBuilder(snapshot)
    requeue_after = delete_finished_children(draft, job.status.conditions, job.spec.children_ttl_seconds)
    status = None
    if job.status.observed_generation != job.metadata.generation:
        # suspend, cancel and childrenTTLSeconds can still change; the verdict does not.
        if job.spec.cancel and not is_cancelled(job):
            draft.event(
                EventReason.CANCEL_IGNORED,
                "spec.cancel has no effect, because the run has already ended: its Checkpoints and promotions"
                " stay",
            )
        status = status_manifest(
            job.status.model_copy(update={"observed_generation": job.metadata.generation})
        )
    return draft.plan(status, requeue_after)


def restore(run: RunPass) -> Plan:
    """Adopt the run's Checkpoints instead of training again. They may be restored later than the run."""
    records = checkpoints(run.job, run.snapshot.checkpoints)
    if not records:
        return run.plan(
            Blocked(
                Reason.CHECKPOINT_NOT_FOUND,
                "this run was trained before it was restored from a backup, and its Checkpoints are missing:"
                " restore them too, or remove the run's annotation to train again (kubectl annotate"
                f" finetunejob {run.job.name} {RECORDED_RUN}- -n {run.job.namespace})",
                requeue_after=None,
            )
        )
    _adopt(run, records)
    return run.plan(
        Done(
            Reason.RESTORED,
            f"the status was lost, but Checkpoint {records[-1].name} of this run exists: nothing is repeated",
        )
    )


def _adopt(run: RunPass, records: Sequence[Checkpoint]) -> None:
    """Take Checkpoints that the run recorded before its status was lost into the status."""
    lineage = records[-1].spec.lineage
    run.resolve(
        parent_checkpoint=lineage.parent_checkpoint,
        base_model_digest=lineage.base_model.digest,
        base_model_revision=lineage.base_model.revision,
        dataset_version=lineage.dataset_version,
        hyperparameters=lineage.hyperparameters,
        chat_template_kwargs=lineage.chat_template_kwargs,
        reasoning_parser=lineage.reasoning_parser,
        trainer_image=lineage.trainer_image,
    )
    run.update(
        checkpoints=tuple(
            CheckpointSummary(name=c.name, step=c.spec.step, digest=c.spec.digest, probe=c.spec.probe)
            for c in records[-MAX_CHECKPOINTS:]
        )
    )
    run.condition(ConditionType.TRAINED, Reason.RESTORED, f"{len(records)} Checkpoints of this run exist")


def accept_cancel(run: RunPass) -> Plan:
    """Record that the run is cancelled, before anything is deleted: `spec.cancel` may be removed again.

    The time so far is recorded with it: pods without a node are gone as soon as they are deleted, and the
    write that follows their deletion can fail.
    """
    count_running(run)
    return run.plan(Working(Reason.CANCELLING, "cancelled: the operator stops what runs"))


def cancel(run: RunPass) -> Plan:
    """Stop the run for good. Its pods save their state in the grace period; its Checkpoints stay."""
    ending = stop_all(run, _job_names(run), "their state", Reason.CANCELLING)
    if ending is not None:
        return run.plan(ending)
    recorded = checkpoints(run.job, run.snapshot.checkpoints)
    if recorded and not run.status.checkpoints:
        _adopt(run, recorded)
    _end_stages(run)
    run.update(retry=None)
    kept = ", and its Checkpoints stay" if recorded else ""
    message = f"cancelled by spec.cancel{kept}. To train again, create a FineTuneJob with another name"
    run.draft.event(EventReason.CANCELLED, message)
    return run.plan(Failed(Reason.CANCELLED, message))


def _end_stages(run: RunPass) -> None:
    """Record the times of stages whose result is not recorded, so that they count as lost."""
    begun = [run.status.usage.name] if run.status.usage is not None else []
    jobs = (job for job in run.snapshot.children[JOB].values() if has_result(job))
    for stage in (*begun, *(job["metadata"]["labels"][STAGE] for job in jobs)):
        if not has_finished(run, stage):
            finish(run, stage)


def suspend(run: RunPass) -> Plan:
    """Delete running Jobs in the foreground: their pods save the state in the grace period and then end."""
    message = "suspended: the run uses no devices; set spec.suspend to false to continue"
    return run.plan(stop_all(run, _job_names(run), "their state") or Suspended(Reason.SUSPENDED, message))


def _job_names(run: RunPass) -> tuple[str, ...]:
    return tuple(run.job_names(stage).stage for stage in get_args(Stage))


def delete(job: FineTuneJob, snapshot: Snapshot) -> Plan:
    """One pass. It deletes the records first, and the run once its folder is removed or after a timeout."""
    store = job.status.resolved.store
    is_simple = not has_finalizer(job) or snapshot.is_namespace_terminating
    if store is None or is_simple or is_without_claim(store, snapshot):
        return delete_records_and_release(job, records(job, snapshot), snapshot)
    draft = PlanBuilder(snapshot)
    delete_records(draft, records(job, snapshot))
    return release(draft, job, [_removal(job, store)])


def _removal(job: FineTuneJob, store: str) -> Removal:
    return Removal(
        owner=job,
        store=store,
        secret=job.status.resolved.store_credentials,
        folder=run_folder(store, job.uid),
        artifact=None,
        advice="to delete the run without its folder, remove its finalizer finetune.dev/cleanup",
    )
