# SPDX-License-Identifier: Apache-2.0
"""The champion that the current Checkpoint is compared with.

It is recorded in the status before the Job that measures it is created, so that its content is not removed
meanwhile. Before there is a Job, another champion replaces it, so that its deletion waits for nothing else.
"""

from finetune_operator.api.checkpoint import AdapterRecord, Checkpoint
from finetune_operator.api.evaluationstatus import ComparedChampion
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.evaluateconfig import subjects_of
from finetune_operator.manifests.evaluatedweights import live_model as live_model_of
from finetune_operator.reconcile.evaluation.assessment import STAGE, Assessment
from finetune_operator.reconcile.stages.jobstate import running_orphans
from finetune_operator.reconcile.steps import Working
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.evaluation import LiveModel


def choose(run: Assessment, checkpoint: Checkpoint) -> Working | None:
    """Record the champion of the Checkpoint's model line; None once it is recorded.

    The champion is not compared with itself.
    """
    if "Live" not in subjects_of(run.evaluation.spec):
        return None
    champion = run.snapshot.checkpoints.champion(checkpoint.spec.model)
    now = ComparedChampion()
    if champion is not None and champion.name != checkpoint.name:
        now = ComparedChampion(checkpoint=champion.name, digest=champion.spec.digest)
    name, known = run.job_names(STAGE).stage, run.status.live or ComparedChampion()
    begun = name in run.snapshot.children[JOB] or running_orphans(run.snapshot, name)
    if begun or known == now:
        return None
    run.update(live=now if now.checkpoint else None)
    described = f"champion {now.checkpoint}" if now.checkpoint else "no champion"
    return Working(Reason.QUEUED, f"comparing {checkpoint.name} with {described}")


def live_adapter(run: Assessment) -> AdapterRecord | None:
    """Properties of the recorded champion's adapter; None if it has none."""
    known = run.status.live
    champion = run.snapshot.checkpoints.get(known.checkpoint) if known and known.checkpoint else None
    return None if champion is None else champion.spec.lineage.adapter


def live_model(run: Assessment) -> LiveModel | None:
    """The recorded champion as the trainer needs it; None if there is none."""
    known = run.status.live
    champion = run.snapshot.checkpoints.get(known.checkpoint) if known and known.checkpoint else None
    return None if champion is None else live_model_of(champion)
