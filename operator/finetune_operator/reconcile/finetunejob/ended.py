"""Runs that train nothing: finished, restored from a backup, or suspended."""

from datetime import timedelta
from typing import get_args

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejobstatus import MAX_CHECKPOINTS, CheckpointSummary
from finetune_operator.engine.resources import JOB, NETWORK_POLICY, SERVICE
from finetune_operator.manifests.labels import RECORDED_RUN
from finetune_operator.plan import Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.finetunejob.identity import checkpoints
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stopping import stop
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages.jobresults import pods_of
from finetune_operator.reconcile.stages.jobstate import is_unfinished, running_orphans, until_ended
from finetune_operator.reconcile.steps import Blocked, Done, Suspended
from finetune_operator.status.conditions import find, status_manifest
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.vocabulary import Stage


def finished(job: FineTuneJob, snapshot: Snapshot) -> Plan:
    """Delete the children `childrenTTLSeconds` after the end: finished Jobs, then the pods' Service and
    NetworkPolicy; never a record.

    The Secret with the pods' key goes with the run, because the right to delete one Secret is the right to
    delete all.
    """
    draft = Draft(snapshot)
    requeue_after = None
    leftover = [child for child in snapshot.children[JOB].values() if not is_unfinished(child)]
    if len(leftover) == len(snapshot.children[JOB]):
        leftover += [*snapshot.children[SERVICE].values(), *snapshot.children[NETWORK_POLICY].values()]
    end = find(job.status.conditions, ConditionType.READY) or find(
        job.status.conditions, ConditionType.STALLED
    )
    if leftover and end is not None:
        due = end.last_transition_time + timedelta(seconds=job.spec.children_ttl_seconds)
        if snapshot.now >= due:
            for child in leftover:
                draft.remove(child, "Background")
        else:
            requeue_after = (due - snapshot.now).total_seconds()
    status = None
    if job.status.observed_generation != job.metadata.generation:
        # suspend and childrenTTLSeconds can still change; the verdict does not.
        status = status_manifest(
            job.status.model_copy(update={"observed_generation": job.metadata.generation})
        )
    return draft.plan(status, requeue_after)


def restored(run: Run) -> Plan:
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
            CheckpointSummary(name=c.name, step=c.spec.step, digest=c.spec.digest)
            for c in records[-MAX_CHECKPOINTS:]
        )
    )
    run.condition(ConditionType.TRAINED, Reason.RESTORED, f"{len(records)} Checkpoints of this run exist")
    return run.plan(
        Done(
            Reason.RESTORED,
            f"the status was lost, but Checkpoint {records[-1].name} of this run exists: nothing is repeated",
        )
    )


def suspend(run: Run) -> Plan:
    """Delete running Jobs in the foreground: their pods save the state in the grace period and then end."""
    running = [child for child in run.snapshot.children[JOB].values() if is_unfinished(child)]
    names = [run.job_names(stage).stage for stage in get_args(Stage)]
    orphans = [pod for name in names for pod in running_orphans(run.snapshot, name)]
    if not running and not orphans:
        message = "suspended: the run uses no devices; set spec.suspend to false to continue"
        return run.plan(Suspended(Reason.SUSPENDED, message))
    for child in running:
        stop(run, child)
    pods = [*orphans, *(pod for child in running for pod in pods_of(child, run.snapshot))]
    message = "waiting for the pods to save their state and end"
    return run.plan(until_ended(pods, Reason.SUSPENDING, message, run.snapshot.now))
