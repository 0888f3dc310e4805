# SPDX-License-Identifier: Apache-2.0
"""Runs that train nothing: finished, restored from a backup, or suspended."""

from typing import get_args

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejobstatus import MAX_CHECKPOINTS, CheckpointSummary
from finetune_operator.manifests.labels import RECORDED_RUN
from finetune_operator.plan import Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.finetunejob.identity import checkpoints
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages.leftovers import clear_leftovers
from finetune_operator.reconcile.stages.stop import stop_all
from finetune_operator.reconcile.steps import Blocked, Done, Suspended
from finetune_operator.status.conditions import status_manifest
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.vocabulary import Stage


def finished(job: FineTuneJob, snapshot: Snapshot) -> Plan:
    """Delete the children `childrenTTLSeconds` after the end."""
    draft = Draft(snapshot)
    requeue_after = clear_leftovers(draft, job.status.conditions, job.spec.children_ttl_seconds)
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
            CheckpointSummary(name=c.name, step=c.spec.step, digest=c.spec.digest, probe=c.spec.probe)
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
    names = (run.job_names(stage).stage for stage in get_args(Stage))
    message = "suspended: the run uses no devices; set spec.suspend to false to continue"
    return run.plan(stop_all(run, names, "their state") or Suspended(Reason.SUSPENDED, message))
